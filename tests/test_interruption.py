"""What signals, a second run, full and read-only disks, damaged files and other epochs leave."""

import inspect
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from stages.support.cache import md5_of
from stages.support.digests import short_sha256
from stages.support.errors import GOES_ON, InputError
from stages.support.tensors import read_tensors
from tests.commands import started
from tests.conftest import UP_TO_DATE, Project, copy_of, stages_run

TRAINED = "train@sgd-0"
CHECKPOINT = ".checkpoints/sgd/0.safetensors"
WEIGHTS = "models/sgd/0.safetensors"
FIRST_RENAMING = {"SEND": "SIGSTOP", "AT_RENAMING": "1"}


def hook() -> None:
    """Disturb this process, a stage's, as the environment says."""
    import os
    import pathlib
    import resource
    import signal
    import sys
    import threading
    from typing import Any

    left = int(os.environ.get("AT_RENAMING", "0"))

    def signalling(rename: Any) -> Any:
        def hooked(path: Any, target: Any) -> Any:
            nonlocal left
            if sys._getframe(1).f_code.co_filename.endswith("/stages/support/atomic.py"):
                left -= 1
                if left == 0:
                    # To this very thread: it must not get as far as the renaming.
                    signal.pthread_kill(threading.get_ident(), signal.Signals[os.environ["SEND"]])
            return rename(path, target)

        return hooked

    if left:
        pathlib.Path.replace = signalling(pathlib.Path.replace)  # type: ignore[method-assign]
        pathlib.Path.rename = signalling(pathlib.Path.rename)  # type: ignore[method-assign]
    if "FILE_SIZE" in os.environ:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["FILE_SIZE"]),) * 2)
    if "KILLED_BY_SIZE" in os.environ:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)


# Python runs sitecustomize at its start, here with an effect in the stages' processes alone.
SITECUSTOMIZE = f"""
import sys

{inspect.getsource(hook)}

if sys.orig_argv[1:3] == ["-m", "stages"]:
    hook()
"""

# A process that has imported everything, so that a stage in a fork of it takes no seconds.
FORKING = f"""
import json, os, sys
import torch._dynamo  # the first step of an optimizer would import it, for seconds
from stages import compare, download, evaluate, promote, select, subset, train
from stages.__main__ import main
from stages.support.errors import errors_as_messages

{inspect.getsource(hook)}

for line in sys.stdin:
    folder, arguments, environment = json.loads(line)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        os.closerange(reading, writing + 1)
        os.chdir(folder)
        os.environ.update(environment)
        hook()
        sys.argv[1:] = arguments
        with errors_as_messages():
            main()
        sys.exit()
    os.close(writing)
    with open(reading) as file:
        output = file.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, output]), flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def _hook(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("hook")
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield


Fork = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def fork(finished: Project) -> Iterator[Fork]:
    """Return what runs a stage in a process of its own, with an environment for `hook`.

    It takes the project, the stage's name in dvc.lock and the environment, and returns the exit
    code and what was printed.
    """
    with subprocess.Popen(
        [sys.executable, "-c", FORKING],
        cwd=finished.folder,  # whose code is that of its copies
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:

        def run(project: Project, stage: str, **environment: str) -> tuple[int, str]:
            assert process.stdin is not None and process.stdout is not None
            arguments = project.command(stage)[3:]  # without python -m stages
            process.stdin.write(f"{json.dumps([str(project.folder), arguments, environment])}\n")
            process.stdin.flush()
            code, output = json.loads(process.stdout.readline())
            assert "Traceback" not in output, output
            return code, output

        yield run
        process.communicate()


def forget_training(project: Project) -> None:
    """Leave no copy of what the training of sgd made, so that it runs again."""
    shutil.rmtree(project.folder / ".dvc/cache/runs", ignore_errors=True)
    (project.folder / CHECKPOINT).unlink()
    for out in project.lock()["stages"][TRAINED]["outs"]:
        cached = f".dvc/cache/files/md5/{out['md5'][:2]}/{out['md5'][2:]}"
        (project.folder / cached).unlink()
        (project.folder / out["path"]).unlink()


def edit(project: Project, module: str) -> None:
    """Change a module of the stages, but not what it does."""
    with (project.folder / "stages" / module).open("a", encoding="utf-8") as file:
        file.write("# a change\n")


def set_epochs(project: Project, epochs: int) -> None:
    """Write the number of epochs into params.yaml."""
    with project.params() as params:
        params["train"]["epochs"] = epochs


def leftovers(project: Project) -> list[str]:
    """Return the files that are neither results nor checkpoints, among and beside them."""
    names = [
        str(path.relative_to(project.folder))
        for folder in ("data", "models", "metrics", ".checkpoints")
        for path in (project.folder / folder).rglob("*")
    ]
    return [name for name in names if "tmp" in name]


def size(path: Path) -> int:
    """Return the size in bytes of a file, or of the largest file of a folder."""
    return max(file.stat().st_size for file in (path, *path.glob("*")) if file.is_file())


# Signals, and two runs at once, under DVC.


@pytest.mark.slow
def test_terminated_killed_and_interrupted_a_training_loses_at_most_the_epoch_it_was_in(
    project: Project,
) -> None:
    before = project.digests()
    forget_training(project)
    repro = ("dvc", "repro", "train@sgd-0")
    output = ""
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        with started(project, *repro, **FIRST_RENAMING) as command:
            command.stopped()  # a file written, the one before still in its place
            os.killpg(command.process.pid, number)
            os.killpg(command.process.pid, signal.SIGCONT)
            assert command.end() != 0
        output += command.output
        if number != signal.SIGKILL:
            assert re.search(rf"\nstopped by {number.name}; .*{GOES_ON}\n", command.output)
            assert leftovers(project) == []
        assert not (project.folder / WEIGHTS).exists()
    output += project.run(*repro)
    assert re.findall(r"Epoch \[(\d)/2\].*, saved\n", output) == ["1", "2"]  # neither again
    assert "goes on after epoch 2" in output
    assert project.digests() == before
    assert leftovers(project) == []


@pytest.mark.slow
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
    forget_training(project)
    repro = ("dvc", "repro", "train@sgd-0")
    with project.params() as params:
        params["variants"]["sgd"]["lr"] = lr
    with started(project, *repro, **FIRST_RENAMING) as orphaned:
        orphan = orphaned.stopped()
        orphaned.process.kill()
        orphaned.process.wait()
        with project.params() as params:
            params["variants"]["sgd"]["lr"] = 0.01
        with started(project, *repro) as command:
            command.until(f"waiting: process {orphan.pid} on {platform.node()} is at train-sgd-0")
            orphan.resume()
            assert command.end() == 0
        orphaned.end()
    assert orphan_says in orphaned.output
    assert next_says in command.output
    assert project.digests() == before


def test_a_stage_waits_for_another_of_its_kind(project: Project) -> None:
    before = project.digests()
    command = project.command("subset")
    with started(project, *command, **FIRST_RENAMING) as first:
        process = first.stopped()
        with started(project, *command) as second:
            second.until(f"waiting: process {process.pid} on {platform.node()} is at subset")
            process.resume()
            assert (first.end(), second.end()) == (0, 0)
    assert project.digests() == before


# Code and parameters that change during a run.


OF_SELECT = ("select.py", "reporting/tables.py")


@pytest.mark.parametrize("module", [*OF_SELECT, "support/tables.py", "__main__.py", "compare.py"])
def test_an_edit_meanwhile_fails_a_stage_only_if_it_depends_on_that_code(
    project: Project, module: str
) -> None:
    with started(project, *project.command("select"), **FIRST_RENAMING) as command:
        process = command.stopped()
        edit(project, module)
        process.resume()
        assert command.end() == (module in OF_SELECT), command.output
    error = f"\nerror: stages/{module} changed while this ran: run it again\n"
    assert command.output.endswith(error) == (module in OF_SELECT)


@pytest.mark.slow
def test_dvc_does_not_record_a_result_of_code_that_was_edited_meanwhile(project: Project) -> None:
    before = project.digests()
    repro = ("dvc", "repro", "--single-item", "subset")
    with started(project, *repro, "--force", **FIRST_RENAMING) as command:
        process = command.stopped()
        edit(project, "learning/idx.py")
        process.resume()
        assert command.end() == 255
    assert "\nerror: stages/learning/idx.py changed while this ran" in command.output
    assert "exited with 1" in command.output
    assert stages_run(project.run(*repro)) == ["subset"]
    assert project.digests() == before


def test_a_stage_whose_parameters_were_changed_meanwhile_fails(project: Project) -> None:
    with started(project, *project.command("subset"), **FIRST_RENAMING) as command:
        process = command.stopped()
        with project.params() as params:
            params["data"]["per_class"] = 3
        process.resume()
        assert command.end() == 1
    assert "\nerror: params.yaml changed while this ran: run it again\n" in command.output
    assert "train: 12 images" in command.output


@pytest.mark.slow
def test_code_that_was_edited_while_a_run_waited_is_not_taken_for_the_code_that_ran(
    project: Project,
) -> None:
    checkpoint, module = project.folder / CHECKPOINT, "stages/learning/loop.py"
    checkpoint.unlink()
    ran = short_sha256(project.folder / module)
    set_epochs(project, 1)
    command = project.command("train@sgd-0")
    with started(project, *command, **FIRST_RENAMING) as orphan:
        orphan.stopped()
        with started(project, *command) as waiting:
            waiting.until("waiting: process")
            edit(project, "learning/loop.py")
            orphan.process.kill()
            assert waiting.end() == 1
    assert "starts with epoch 1" in waiting.output
    assert f"\nerror: {module} changed while this ran: run it again" in waiting.output
    assert read_tensors(checkpoint)[1]["fingerprint"][module] == ran


# Kills.


@pytest.mark.parametrize(
    ("stage", "renamings"),
    [
        ("download", (1, 2)),
        ("subset", (1, 2, 3, 4)),
        ("train@sgd-0", (1, 2, 2, 2, 3)),  # both checkpoints, then weights, history and timing
        ("evaluate@sgd", (1, 2, 3, 4)),
        # Killed before the second one, it leaves no folder to set aside.
        pytest.param("compare", (1, 2, 2, 3), marks=pytest.mark.slow),
        ("select", (1, 2, 3)),
        ("promote", (1,)),
    ],
)
def test_killed_before_any_of_its_renamings_a_stage_leaves_whole_outputs_or_none(
    project: Project, fork: Fork, stage: str, renamings: tuple[int, ...]
) -> None:
    before = project.digests()
    shutil.rmtree(project.folder / ".checkpoints")
    for renaming in renamings:
        code, output = fork(project, stage, SEND="SIGKILL", AT_RENAMING=str(renaming))
        assert code == -signal.SIGKILL, output
        whole = {name: sha for name, sha in project.digests().items() if "tmp" not in name}
        assert whole.items() <= before.items()
        assert leftovers(project)
    # One renaming more than were tried: there are no others.
    code, output = fork(project, stage, SEND="SIGKILL", AT_RENAMING=str(renamings[-1] + 1))
    assert code == 0, output
    assert project.digests() == before
    assert leftovers(project) == []


def test_what_a_killed_stage_leaves_is_nothing_to_git_and_dvc(project: Project, fork: Fork) -> None:
    shutil.rmtree(project.folder / ".checkpoints")
    stages = ("download", "subset", "train@sgd-0", "evaluate@sgd", "compare", "select", "promote")
    for stage in stages:
        fork(project, stage, SEND="SIGKILL", AT_RENAMING="1")
    assert len(leftovers(project)) >= len(stages)
    assert project.run("git", "status", "--porcelain") == ""
    assert UP_TO_DATE in project.run("dvc", "status")


@pytest.mark.parametrize("file", [CHECKPOINT, WEIGHTS])
def test_killed_in_the_midst_of_writing_a_training_leaves_nothing_in_the_way(
    project: Project, fork: Fork, file: str
) -> None:
    before = project.digests()
    limit = str(size(project.folder / file) - 1)
    (project.folder / file).unlink()
    code, output = fork(project, "train@sgd-0", FILE_SIZE=limit, KILLED_BY_SIZE="yes")
    assert code == -signal.SIGXFSZ, output
    assert all(f"{file}.tmp/" in f"{name}/" for name in leftovers(project)), leftovers(project)
    assert fork(project, "train@sgd-0")[0] == 0
    assert project.digests() == before
    assert leftovers(project) == []


# Disks that are full or read-only, and files in the way.


@pytest.mark.parametrize(
    ("stage", "named"),
    [
        ("download", "data/raw"),
        ("subset", "data/subset"),
        ("train@sgd-0", WEIGHTS),
        ("evaluate@sgd", "metrics/curves/sgd.csv"),
        ("compare", "metrics/figures"),
        ("select", "metrics/selected.json"),
        ("promote", "models/selected.safetensors"),
    ],
)
def test_on_a_full_disk_a_stage_names_the_file_and_leaves_all_as_it_was(
    project: Project, fork: Fork, stage: str, named: str
) -> None:
    before = project.digests()
    code, output = fork(project, stage, FILE_SIZE=str(size(project.folder / named) - 1))
    assert code == 1
    assert_not_written(output.splitlines()[-1].removeprefix("error: "), named, "ile too large")
    assert project.digests() == before
    assert leftovers(project) == []


def assert_not_written(error: str, named: str, reason: str) -> None:
    """Check that an error names the file, the reason and what to do."""
    assert error.startswith(named)  # or a file within
    assert " was not written: " in error
    assert reason in error
    assert "free disk space, or make the folder writable, then run the command again" in error


def test_a_checkpoint_that_does_not_fit_on_the_disk_leaves_the_one_before(
    project: Project, fork: Fork
) -> None:
    before, checkpoint = project.digests(), (project.folder / CHECKPOINT).read_bytes()
    set_epochs(project, 3)
    code, output = fork(project, "train@sgd-0", FILE_SIZE=str(len(checkpoint) - 1))
    assert code == 1
    assert "goes on after epoch 2" in output
    assert_not_written(output.splitlines()[-1].removeprefix("error: "), CHECKPOINT, "ile too large")
    assert (project.folder / CHECKPOINT).read_bytes() == checkpoint
    assert project.digests() == before
    assert leftovers(project) == []


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[Path, str], None]]:
    """A function that mounts an empty disk of its own over a folder, or mounts it differently."""
    mounted: list[Path] = []

    def mount(folder: Path, options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        again = "remount," if folder in mounted else ""
        command = ["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting is not permitted here")
        if not again:
            mounted.append(folder)

    yield mount
    for folder in mounted:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_after_a_full_disk_a_training_goes_on(
    project: Project, mount: Callable[[Path, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before, checkpoint = project.digests(), project.folder / CHECKPOINT
    whole = size(checkpoint)
    checkpoint.unlink()
    (project.folder / WEIGHTS).unlink()
    mount(checkpoint.parents[1], f"size={whole * 3 // 2}")  # room for one, but not for two
    with pytest.raises(InputError) as stop:
        project.stage_again(TRAINED)
    assert_not_written(str(stop.value), CHECKPOINT, "No space left on device")
    assert "Epoch [1/2]" in capsys.readouterr().out
    assert leftovers(project) == []
    mount(checkpoint.parents[1], f"size={whole * 3}")
    project.stage_again(TRAINED)
    assert "goes on after epoch 1" in capsys.readouterr().out
    assert project.digests() == before


@pytest.mark.slow
def test_a_read_only_folder_is_named_and_what_was_trained_is_kept(
    project: Project, mount: Callable[[Path, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    before = project.digests()
    (project.folder / CHECKPOINT).unlink()
    mount((project.folder / WEIGHTS).parent, "ro")
    with pytest.raises(InputError) as stop:
        project.stage_again(TRAINED)
    assert_not_written(str(stop.value), WEIGHTS, "Read-only file system")
    assert "Epoch [2/2]" in capsys.readouterr().out
    mount((project.folder / WEIGHTS).parent, "rw")
    project.stage_again(TRAINED)
    assert "goes on after epoch 2" in capsys.readouterr().out
    assert project.digests() == before


def test_a_file_in_the_place_of_a_folder_is_named(project: Project) -> None:
    folder = project.folder / "metrics/summary"
    shutil.rmtree(folder)
    folder.touch()
    with pytest.raises(InputError) as stop:
        project.stage_again("evaluate@sgd")
    reason = "Not a directory: 'metrics/summary/sgd.json.tmp'"
    assert_not_written(str(stop.value), "metrics/summary/sgd.json", reason)


# Damaged files, and other epochs, under DVC.


@pytest.mark.slow
def test_one_damaged_byte_in_a_model_is_found_and_mended(project: Project) -> None:
    before = project.digests()
    weights = project.folder / "models/adam/0.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.unlink()  # it may be a link
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"^models/adam/0\.safetensors: damaged, its digest is"):
        project.stage_again("evaluate@adam")
    assert "train@adam-0" not in project.repro()
    assert project.digests() == before


@pytest.mark.slow
def test_an_experiment_elsewhere_goes_on_with_the_bytes_of_a_run_in_one_go(
    finished: Project, project: Project, tmp_path: Path
) -> None:
    before = project.digests()
    longer = ("dvc", "exp", "run", "--temp", "--name", "longer", "-S", "train.epochs=3", TRAINED)
    output = project.run(*longer)
    assert output.count("goes on after epoch 2") == 1
    assert output.count("Epoch [3/3]") == 1
    assert project.digests() == before
    reference = project.run("git", "for-each-ref", "--format=%(refname)", "refs/exps/**/longer")
    lock = yaml.safe_load(project.run("git", "show", f"{reference.strip()}:dvc.lock"))

    one_go = copy_of(finished, tmp_path / "one_go")
    shutil.rmtree(one_go.folder / ".checkpoints")
    set_epochs(one_go, 3)
    one_go.stage_again(TRAINED)
    for out in lock["stages"][TRAINED]["outs"]:
        if "timing" not in out["path"]:
            assert md5_of(one_go.folder / out["path"]) == out["md5"]
