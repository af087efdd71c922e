"""What signals, a second run, full and read-only disks, damaged files and other epochs leave."""

import os
import platform
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from typing import Any

import psutil  # type: ignore[import-untyped]  # DVC brings it
import pytest
import yaml

from stages import digest
from stages.lib.command import InputError
from stages.lib.tensorfile import read_tensors
from tests.conftest import Project, stages_run
from tests.test_pipeline import UP_TO_DATE
from tools.faults import cut_short, disturb, require_whole

TRAINED = ("train@sgd-0", "train@adam-0")
CHECKPOINT = ".checkpoints/sgd/0.safetensors"
WEIGHTS = "models/sgd/0.safetensors"
GOES_ON = "`dvc repro` goes on"
# In MB: weights 113; a checkpoint of sgd, which adds the momentum, 225.
BELOW_WEIGHTS, BELOW_CHECKPOINT = 100_000_000, 200_000_000
SAFETY_NET = 600  # seconds after which a command that hangs is killed; no test waits for it

# Python runs sitecustomize at its start, here in the stages' processes alone.
HOOK = """
import os, pathlib, resource, signal, sys, threading

def signalling(rename):
    def hooked(path, target):
        global left
        if sys._getframe(1).f_code.co_filename.endswith("/stages/lib/files.py"):
            left -= 1
            if left == 0:
                # To this very thread: it must not get as far as the renaming.
                signal.pthread_kill(threading.get_ident(), signal.Signals[os.environ["SEND"]])
        return rename(path, target)
    return hooked

if sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2].startswith("stages."):
    if "AT_RENAMING" in os.environ:
        left = int(os.environ["AT_RENAMING"])
        pathlib.Path.replace = signalling(pathlib.Path.replace)
        pathlib.Path.rename = signalling(pathlib.Path.rename)
    if "FILE_SIZE" in os.environ:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["FILE_SIZE"]),) * 2)
    if "KILLED_BY_SIZE" in os.environ:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
"""


@pytest.fixture(scope="module", autouse=True)
def _hook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("hook")
    (folder / "sitecustomize.py").write_text(HOOK, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield


@dataclass
class Command:
    """A running command, alone in its process group, and what it has printed so far."""

    process: subprocess.Popen[str]
    output: str = ""

    def until(self, text: str) -> None:
        """Read until a line with the text; fail if the output ends without one."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        pytest.fail(f"never printed {text!r}:\n{self.output}")

    def end(self) -> int:
        """Read until nobody can print any more, orphans included; return the exit code."""
        self.output += self.process.communicate()[0]
        assert "Traceback" not in self.output, self.output
        return self.process.returncode

    def stopped(self) -> psutil.Process:
        """Return the stage's process once it has stopped itself, as the hook lets it."""
        while self.process.poll() is None:
            process = psutil.Process(self.process.pid)
            for one in (process, *process.children(recursive=True)):
                if one.status() == psutil.STATUS_STOPPED:
                    return one
            time.sleep(0.02)
        pytest.fail(f"ended instead of stopping:\n{self.process.communicate()[0]}")


@contextmanager
def started(project: Project, *command: str, **environment: str) -> Iterator[Command]:
    """Yield the command, started; nothing of it is left afterwards."""
    with subprocess.Popen(
        command,
        cwd=project.folder,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:

        def kill() -> None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return

        timer = Timer(SAFETY_NET, kill)
        timer.start()
        try:
            yield Command(process)
        finally:
            timer.cancel()
            kill()


def run(project: Project, *command: str, **environment: str) -> tuple[int, str]:
    """Run the command to its end; return its exit code and what it printed."""
    with started(project, *command, **environment) as command_run:
        return command_run.end(), command_run.output


def locked(project: Project, stage: str) -> dict[str, Any]:
    """Return what DVC recorded of the stage's last run."""
    lock = yaml.safe_load((project.folder / "dvc.lock").read_text(encoding="utf-8"))
    recorded: dict[str, Any] = lock["stages"][stage]
    return recorded


def forget(project: Project, *stages: str) -> None:
    """Leave no copy of what these trainings made but their checkpoints, so that they run again."""
    shutil.rmtree(project.folder / ".dvc/cache/runs", ignore_errors=True)
    for stage in stages:
        for out in locked(project, stage)["outs"]:
            cached = f".dvc/cache/files/md5/{out['md5'][:2]}/{out['md5'][2:]}"
            (project.folder / cached).unlink()
            (project.folder / out["path"]).unlink()


def edit(project: Project, module: str) -> None:
    """Change a module of the stages, but not what it does."""
    with (project.folder / "stages" / module).open("a", encoding="utf-8") as file:
        file.write("# a change\n")


def leftovers(project: Project) -> list[str]:
    """Return the files that are neither results nor checkpoints, among and beside them."""
    names = [
        str(path.relative_to(project.folder))
        for folder in ("data", "models", "metrics", ".checkpoints")
        for path in (project.folder / folder).rglob("*")
    ]
    return [name for name in names if "tmp" in name]


def results(project: Project) -> dict[str, str]:
    """Return the digests of the results alone."""
    left = leftovers(project)
    return {name: digest for name, digest in project.digests().items() if name not in left}


def is_mountable(folder: Path) -> bool:
    """Tell whether this process may mount."""
    return not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False
    ).returncode


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """A function that mounts an empty disk of its own over a folder, or mounts it differently."""
    trial = tmp_path / "trial"
    trial.mkdir()
    if not is_mountable(trial):
        pytest.skip("mounting is not permitted here")
    mounted = [trial]

    def mount(folder: Path, options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        again = "remount," if folder in mounted else ""
        command = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(folder)]
        subprocess.run(command, check=True)
        if not again:
            mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


def test_terminated_killed_and_interrupted_a_training_loses_at_most_the_epoch_it_was_in(
    project: Project,
) -> None:
    before = project.digests()
    forget(project, "train@sgd-0")
    (project.folder / CHECKPOINT).unlink()
    repro = ("dvc", "repro", "train@sgd-0")
    for name, goes_on, saved in (
        ("SIGTERM", "starts with epoch 1", "Epoch [1/2]"),
        ("SIGKILL", "goes on after epoch 1", None),
        ("SIGINT", "goes on after epoch 1", "Epoch [2/2]"),
    ):
        with started(project, *repro, SEND="SIGSTOP", AT_RENAMING="1") as command:
            command.until(goes_on)
            command.stopped()  # a checkpoint written, the one before still in its place
            os.killpg(command.process.pid, signal.Signals[name])
            os.killpg(command.process.pid, signal.SIGCONT)
            assert command.end() != 0
        if saved:
            assert f"stopped by {name}; {GOES_ON}" in command.output
            assert saved in command.output
            assert leftovers(project) == []
        assert not (project.folder / WEIGHTS).exists()
    output = project.run(*repro)
    assert "goes on after epoch 2" in output
    project.repro()
    assert project.digests() == before
    assert leftovers(project) == []


@pytest.mark.parametrize(
    ("lr", "orphan_says", "next_says"),
    [
        (0.01, "Epoch [2/2]", "goes on after epoch 2"),
        (
            0.02,
            "while this trained, lr was 0.02, is 0.01; no outputs written",
            "is of another training: lr was 0.02, is 0.01",
        ),
    ],
    ids=["the same training", "another learning rate"],
)
def test_after_an_orphan_the_next_run_waits_and_takes_its_checkpoint_only_if_it_fits(
    project: Project, lr: float, orphan_says: str, next_says: str
) -> None:
    before = project.digests()
    forget(project, "train@sgd-0")
    (project.folder / CHECKPOINT).unlink()
    repro = ("dvc", "repro", "train@sgd-0")
    with project.params() as params:
        params["variants"]["sgd"]["lr"] = lr
    with started(project, *repro, SEND="SIGSTOP", AT_RENAMING="1") as orphaned:
        orphan = orphaned.stopped()
        orphaned.process.kill()
        orphaned.process.wait()
        with project.params() as params:
            params["variants"]["sgd"]["lr"] = 0.01
        with started(project, *repro) as command:
            command.until(
                f"waiting: process {orphan.pid} on {platform.node()} is at stages.train-sgd-0"
            )
            orphan.resume()
            assert command.end() == 0
        orphaned.end()
    assert orphan_says in orphaned.output
    assert next_says in command.output
    project.repro()
    assert project.digests() == before


@pytest.mark.parametrize(
    ("stage", "module"),
    [("train@sgd-0", "lib/training.py"), ("subset", "lib/idx.py"), ("select", "select.py")],
)
def test_a_result_of_code_that_was_edited_meanwhile_is_not_recorded(
    project: Project, stage: str, module: str
) -> None:
    before = project.digests()
    repro = ("dvc", "repro", "--single-item", stage)
    with started(project, *repro, "--force", SEND="SIGSTOP", AT_RENAMING="1") as command:
        process = command.stopped()
        edit(project, module)
        process.resume()
        assert command.end() == 255
    assert f"\nerror: stages/{module} changed while this ran: run it again" in command.output
    assert "exited with 1" in command.output
    assert stages_run(project.run(*repro)) == [stage]
    assert project.digests() == before


def test_a_result_of_parameters_that_were_changed_meanwhile_is_not_recorded(
    project: Project,
) -> None:
    repro = ("dvc", "repro", "--single-item", "subset")
    with started(project, *repro, "--force", SEND="SIGSTOP", AT_RENAMING="1") as command:
        process = command.stopped()
        with project.params() as params:
            params["data"]["per_class"] = 3
        process.resume()
        assert command.end() == 255
    assert "\nerror: params.yaml changed while this ran: run it again" in command.output
    assert "train: 12 images" in command.output
    again = project.run(*repro)
    assert stages_run(again) == ["subset"]
    assert "train: 9 images" in again


def test_code_that_was_edited_while_a_run_waited_is_not_taken_for_the_code_that_ran(
    project: Project,
) -> None:
    checkpoint, module = project.folder / CHECKPOINT, "stages/lib/training.py"
    checkpoint.unlink()
    ran = digest(project.folder / module)
    with project.params() as params:
        params["train"]["epochs"] = 1
    command = locked(project, "train@sgd-0")["cmd"].split()
    with started(project, *command, SEND="SIGSTOP", AT_RENAMING="1") as orphan:
        orphan.stopped()
        with started(project, *command) as waiting:
            waiting.until("waiting: process")
            edit(project, "lib/training.py")
            orphan.process.kill()
            assert waiting.end() == 1
    assert "starts with epoch 1" in waiting.output
    assert f"\nerror: {module} changed while this ran: run it again" in waiting.output
    assert read_tensors(checkpoint)[1]["fingerprint"][module] == ran


def test_two_runs_at_once_train_two_variants_but_not_one_twice(project: Project) -> None:
    before = project.digests()
    forget(project, *TRAINED)
    (project.folder / CHECKPOINT).unlink()
    first, second = (("dvc", "repro", "--single-item", stage) for stage in TRAINED)
    with started(project, *first, SEND="SIGSTOP", AT_RENAMING="1") as command:
        trainer = command.stopped()
        refusal = project.run(*first, fails=True)
        assert "is busy, it is being blocked by" in refusal
        assert f"(PID {command.process.pid})" in refusal
        assert stages_run(project.run(*second)) == [TRAINED[1]]
        trainer.resume()
        assert command.end() == 0
    assert "Epoch [2/2]" in command.output
    assert UP_TO_DATE in project.run("dvc", "status", *TRAINED)
    project.repro()
    assert project.digests() == before


@pytest.mark.parametrize(
    ("stage", "renamings"),
    [
        ("download", (1, 2)),
        ("subset", (1, 2, 3, 4)),
        ("train@sgd-0", (1, 2, 2, 2, 3)),  # both checkpoints, then weights, history and timing
        ("evaluate@sgd", (1, 2, 3)),
        ("compare", (1, 2, 2, 3)),  # killed by the second, it leaves no folder to set aside
        ("select", (1, 2)),
        ("promote", (1,)),
    ],
)
def test_killed_before_any_of_its_renamings_a_stage_leaves_whole_outputs_or_none(
    project: Project, stage: str, renamings: tuple[int, ...]
) -> None:
    before = project.digests()
    shutil.rmtree(project.folder / ".checkpoints")
    for renaming in renamings:
        hook = {"SEND": "SIGKILL", "AT_RENAMING": str(renaming)}
        code, output = run(project, *locked(project, stage)["cmd"].split(), **hook)
        assert code == -signal.SIGKILL, output
        assert results(project).items() <= before.items()
        assert leftovers(project)
        assert "tmp" not in project.run("git", "status", "--porcelain")
    assert "tmp" not in project.run("dvc", "status")
    # One renaming more than were tried: there are no others.
    hook = {"SEND": "SIGKILL", "AT_RENAMING": str(renamings[-1] + 1)}
    code, output = run(project, "dvc", "repro", "--single-item", "--force", stage, **hook)
    assert code == 0, output
    assert project.digests() == before
    assert leftovers(project) == []
    assert UP_TO_DATE in project.run("dvc", "status")


@pytest.mark.parametrize(
    ("size", "checkpoints"),
    [(BELOW_CHECKPOINT, 0), (BELOW_WEIGHTS, 1)],
    ids=["checkpoint", "weights"],
)
def test_killed_in_the_midst_of_writing_a_training_leaves_nothing_in_the_way(
    project: Project, size: int, checkpoints: int
) -> None:
    before = project.digests()
    forget(project, "train@sgd-0")
    if not checkpoints:
        (project.folder / CHECKPOINT).unlink()
    hook = {"FILE_SIZE": str(size), "KILLED_BY_SIZE": "yes"}
    code, output = run(project, "dvc", "repro", "train@sgd-0", **hook)
    number = signal.SIGXFSZ.value  # a shell that has not become the command adds 128
    assert code == 255
    assert re.search(rf"exited with (-{number}|{128 + number})\n", output), output
    assert all(".tmp/" in f"{name}/" for name in leftovers(project)), leftovers(project)
    assert "tmp" not in project.run("git", "status", "--porcelain")
    project.repro()
    assert project.digests() == before
    assert leftovers(project) == []


@pytest.mark.parametrize(
    ("stage", "size", "named"),
    [
        ("download", 1_000, "data/raw"),
        ("subset", 10_000, "data/subset"),
        ("train@sgd-0", BELOW_WEIGHTS, WEIGHTS),
        ("evaluate@sgd", 100, "metrics/curves/sgd.csv"),
        ("compare", 10_000, "metrics/figures"),
        ("select", 100, "metrics/selected.json"),
        ("promote", BELOW_WEIGHTS, "models/selected.safetensors"),
    ],
)
def test_on_a_full_disk_a_stage_names_the_file_and_leaves_all_as_it_was(
    project: Project, stage: str, size: int, named: str
) -> None:
    before = project.digests()
    code, output = run(project, *locked(project, stage)["cmd"].split(), FILE_SIZE=str(size))
    error = output.splitlines()[-1]
    assert code == 1
    assert error.startswith(f"error: {named}")
    assert "was not written: " in error
    assert "ile too large" in error
    assert "make room" in error
    assert project.digests() == before
    assert leftovers(project) == []


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_one_before(
    project: Project,
) -> None:
    before, checkpoint = project.digests(), (project.folder / CHECKPOINT).read_bytes()
    with project.params() as params:
        params["train"]["epochs"] = 3
    command = locked(project, "train@sgd-0")["cmd"].split()
    code, output = run(project, *command, FILE_SIZE=str(BELOW_CHECKPOINT))
    assert code == 1
    assert "goes on after epoch 2" in output
    assert output.splitlines()[-1].startswith(f"error: {CHECKPOINT} was not written: ")
    assert (project.folder / CHECKPOINT).read_bytes() == checkpoint
    assert project.digests() == before
    assert leftovers(project) == []


def test_after_a_full_disk_a_training_goes_on(project: Project, mount: Callable[..., None]) -> None:
    before = project.digests()
    forget(project, "train@sgd-0")
    (project.folder / CHECKPOINT).unlink()
    mount(project.folder / ".checkpoints", "size=300m")  # room for one, but not for two
    output = project.run("dvc", "repro", "train@sgd-0", fails=True)
    assert "Epoch [1/2]" in output
    assert f"\nerror: {CHECKPOINT} was not written: " in output
    assert "No space left on device" in output
    assert leftovers(project) == []
    mount(project.folder / ".checkpoints", "size=600m")
    output = project.run("dvc", "repro", "train@sgd-0")
    assert "goes on after epoch 1" in output
    project.repro()
    assert project.digests() == before


def test_a_read_only_folder_is_named_and_what_was_trained_is_kept(
    project: Project, mount: Callable[..., None]
) -> None:
    before = project.digests()
    forget(project, "train@sgd-0")
    (project.folder / CHECKPOINT).unlink()
    mount(project.folder / "models/sgd", "ro,size=200m")
    output = project.run("dvc", "repro", "train@sgd-0", fails=True)
    assert "Epoch [2/2]" in output
    assert f"\nerror: {WEIGHTS} was not written: " in output
    assert "Read-only file system" in output
    assert "or the folder writable" in output
    assert "exited with 1" in output
    mount(project.folder / "models/sgd", "rw,size=200m")
    assert "goes on after epoch 2" in project.run("dvc", "repro", "train@sgd-0")
    project.repro()
    assert project.digests() == before


def test_a_file_in_the_place_of_a_folder_is_named(project: Project) -> None:
    folder = project.folder / "metrics/summary"
    shutil.rmtree(folder)
    folder.touch()
    code, output = run(project, *locked(project, "evaluate@sgd")["cmd"].split())
    assert code == 1
    error = output.splitlines()[-1]
    assert error.startswith("error: metrics/summary/sgd.json was not written: ")
    assert "Not a directory: 'metrics/summary/sgd.json.tmp'" in error
    folder.unlink()
    project.run("git", "checkout", "--quiet", "metrics/summary")
    assert UP_TO_DATE in project.run("dvc", "status")


def test_one_damaged_byte_in_a_model_is_found_and_mended(project: Project) -> None:
    before = project.digests()
    weights = project.folder / "models/adam/0.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()  # it may be a link
    weights.write_bytes(content)
    code, output = run(project, "dvc", "repro", "--single-item", "--force", "evaluate@adam")
    assert code == 255
    assert "\nerror: models/adam/0.safetensors: damaged, its digest is another" in output
    assert "train@adam-0" not in project.repro()
    assert project.digests() == before


@pytest.mark.parametrize(
    ("name", "kept", "again"),
    [
        (".dvc/tmp/rwlock", 0, []),
        (".dvc/tmp/rwlock", 1, []),
        ("dvc.lock", 0, ["compare"]),  # of which DVC keeps nothing in its cache
        ("dvc.lock", 9, ["compare"]),
    ],
)
def test_a_file_of_dvcs_own_that_a_kill_cut_short_is_named_and_may_go(
    project: Project, name: str, kept: int, again: list[str]
) -> None:
    before = project.digests()
    lock = project.folder / "dvc.lock"
    recorded = yaml.safe_load(lock.read_text(encoding="utf-8"))
    file = project.folder / name
    file.write_bytes(file.read_bytes()[:kept])
    assert cut_short(project.run("dvc", "repro", fails=True)) == name
    file.unlink()
    assert project.repro() == again
    assert project.digests() == before
    assert yaml.safe_load(lock.read_text(encoding="utf-8")) == recorded


def test_what_a_kill_cut_off_dvc_lock_comes_from_dvcs_cache(project: Project) -> None:
    before = project.digests()
    file = project.folder / "dvc.lock"
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    for part in (1, len(lines) // 3, len(lines) - 5):
        file.write_text("".join(lines[:part]), encoding="utf-8")
        assert set(project.repro()) <= {"compare"}
        assert project.digests() == before
        assert yaml.safe_load(file.read_text(encoding="utf-8")) == yaml.safe_load(text)


def models(lock: str) -> dict[str, Any]:
    """Return the digests that a dvc.lock records of the first training, timings aside."""
    stages = yaml.safe_load(lock)["stages"]
    return {
        out["path"]: out["md5"] for out in stages[TRAINED[0]]["outs"] if "timing" not in out["path"]
    }


def test_more_epochs_go_on_and_fewer_train_anew_with_the_bytes_of_a_run_in_one_go(
    project: Project,
) -> None:
    before = project.digests()
    lock = project.folder / "dvc.lock"
    more = ("--set-param", "train.epochs=3")

    output = project.run("dvc", "exp", "run", "--temp", "--name", "longer", *more, TRAINED[0])
    assert output.count("goes on after epoch 2") == 1
    assert output.count("Epoch [3/3]") == 1
    assert project.digests() == before
    reference = project.run("git", "for-each-ref", "--format=%(refname)", "refs/exps/**/longer")
    temporary = models(project.run("git", "show", f"{reference.strip()}:dvc.lock"))

    runs = project.folder / ".dvc/cache/runs"
    kept = runs.rename(runs.with_name("kept"))
    output = project.run("dvc", "exp", "run", *more, TRAINED[0])
    shutil.rmtree(runs)
    kept.rename(runs)
    assert output.count("goes on after epoch 2") == 1
    in_place = models(lock.read_text(encoding="utf-8"))

    project.run("git", "checkout", "--quiet", "params.yaml")
    assert project.repro() == []
    assert project.digests() == before

    forget(project, TRAINED[0])
    output = project.run("dvc", "repro")
    assert output.count("has 3 epochs, more than the 2 wanted") == 1
    assert project.digests() == before

    forget(project, TRAINED[0])
    shutil.rmtree(project.folder / ".checkpoints")
    with project.params() as params:
        params["train"]["epochs"] = 3
    output = project.run("dvc", "repro", TRAINED[0])
    assert output.count("starts with epoch 1") == 1
    assert models(lock.read_text(encoding="utf-8")) == temporary == in_place


def test_kills_at_random_moments_change_nothing(
    finished: Project, new_project: Callable[[], Project]
) -> None:
    tally = disturb(lambda: new_project().folder, finished.digests(), 4, set())
    assert tally.hits.total() >= 4
    assert tally.runs >= 1


@pytest.mark.parametrize(
    ("name", "killed", "finished"),
    [
        ("models/.Z4twNcYDvP-EA18KJ-B2CA.tmp", True, True),  # DVC's
        ("models/.0.safetensors.tmp", True, False),
        ("models/sgd/0.safetensors.tmp/0.safetensors", True, False),
        ("models/sgd/1.safetensors", False, False),
    ],
)
def test_what_a_kill_may_leave(tmp_path: Path, name: str, killed: bool, finished: bool) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    for ended, allowed in ((False, killed), (True, finished)):
        with nullcontext() if allowed else pytest.raises(InputError, match=re.escape(name)):
            require_whole(tmp_path, {}, finished=ended)
