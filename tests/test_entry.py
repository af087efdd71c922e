"""`python -m stages`: what it answers, how it ends, and that no lost terminal ends it."""

import fcntl
import io
import os
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from stages import __main__ as entry_module
from stages.__main__ import NAMES, main
from stages.learning import device
from stages.support import digests
from stages.support.errors import GOES_ON, obey_signals, postpone_signals, signal_waits, told
from tests.conftest import CHECKOUT, Project

OUTPUTS = ["no", "no.safetensors", "no.csv", "no.csv"]
TOO_MUCH = 1 << 60  # bytes


@pytest.fixture
def handlers() -> Iterator[None]:
    """Leave this process its own handlers of signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


Entry = Callable[..., tuple[object, str, str]]


@pytest.fixture
def entry(
    handlers: None,
    finished: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Entry:
    """Return what runs the entry in this process, in a folder that has only a params.yaml.

    The function returns the exit code, stdout and stderr.
    """
    shutil.copy(finished.folder / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["stages", *arguments])
        try:
            with told():
                main()
        except SystemExit as stop:
            printed = capsys.readouterr()
            if isinstance(stop.code, str):  # as the interpreter does with it
                return 1, printed.out, f"{printed.err}{stop.code}\n"
            return stop.code, *printed
        return 0, *capsys.readouterr()

    return run


def test_without_a_stage_the_entry_lists_them_with_a_line_each() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    listed = done.stdout.partition("stages:\n")[2].splitlines()[: len(NAMES)]
    assert tuple(line.split()[0] for line in listed) == NAMES
    assert all(len(line.split()) > 4 and line.endswith(".") for line in listed)


def test_every_stage_is_listed() -> None:
    modules = {path.stem for path in (CHECKOUT / "stages").glob("*.py")}
    assert modules - {"__init__", "__main__"} == set(NAMES)


def test_an_unknown_stage_is_answered_with_the_names(entry: Entry) -> None:
    code, _, error = entry("trian", "sgd")
    assert code == 2
    assert "invalid choice: 'trian'" in error
    assert all(name in error for name in NAMES)


def test_help_explains_the_arguments_of_a_stage(entry: Entry) -> None:
    code, answer, _ = entry("train", "--help")
    assert code == 0
    arguments = ("variant", "seed", "subset", "weights", "history", "timing", "costs_between_saves")
    explained = [line.split(": ")[0].strip() for line in answer.splitlines() if ": " in line]
    assert [name for name in explained if name in arguments] == [*arguments]
    assert "--costs-between-saves" in answer


@pytest.mark.parametrize(
    ("arguments", "code", "answer"),
    [
        (["train", "foo", "0", *OUTPUTS], 1, "names no variant foo with seed 0"),
        (["train", "adam", "99", *OUTPUTS], 1, "names no variant adam with seed 99"),
        (["train", "adam", "zero", *OUTPUTS], 2, "argument seed: invalid int value: 'zero'"),
        (["train", "adam"], 2, "the following arguments are required: seed, subset"),
        (["train", "adam", "0", *OUTPUTS], 1, "no/train.safetensors"),
        (["evaluate", "foo", *["no"] * 7], 1, "names no variant foo"),
        (["subset", "no", "no"], 1, "no/train-images-idx3-ubyte"),
        (["promote", "params.yaml", "no"], 1, "params.yaml: not readable as a file of ours"),
        (["select", "no", "params.yaml", *["no"] * 3], 1, "params.yaml: "),
    ],
)
def test_a_wrong_command_line_is_answered(
    arguments: list[str], code: int, answer: str, entry: Entry
) -> None:
    found, _, error = entry(*arguments)
    assert found == code
    assert answer in error
    assert error.splitlines()[-1].startswith("error: " if code == 1 else "python -m stages ")
    assert {path.name for path in Path.cwd().iterdir()} <= {"params.yaml", ".locks"}


@pytest.mark.parametrize("option", [[], ["--costs-between-saves", "0"]])
def test_a_trainings_lock_names_variant_and_seed_alone(option: list[str], entry: Entry) -> None:
    entry("train", *option, "adam", "0", *OUTPUTS)
    assert [path.name for path in Path(".locks").iterdir()] == ["train-adam-0"]


def test_another_folder_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stages", "subset", "data/raw", "data/subset"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    error = "error: params.yaml not found; run from the top folder of the repository\n"
    assert done.stderr == error


# Errors.


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    "allocate",
    [lambda: torch.empty(TOO_MUCH, dtype=torch.uint8), lambda: np.empty(TOO_MUCH, np.uint8)],
    ids=["torch", "numpy"],
)
def test_out_of_memory_is_told_in_one_line(allocate: Callable[[], object]) -> None:
    with pytest.raises(SystemExit) as stop, told():
        allocate()
    assert stop.value.code == f"error: out of memory; {GOES_ON}"


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 20.00 MiB.",
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "Invalid buffer size: 19.45 GB",
        "std::bad_alloc",
    ],
)
def test_out_of_memory_is_known_in_whatever_words(message: str) -> None:
    with pytest.raises(SystemExit, match="error: out of memory"), told():
        raise RuntimeError(message)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("message", ["CUDA error: an illegal memory access", "mat1 and mat2"])
def test_any_other_error_of_torch_keeps_its_traceback(message: str) -> None:
    with pytest.raises(RuntimeError, match=message), told():
        raise RuntimeError(message)


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(
    "pin", ["torsh==2.14.1", "torch == ", "torch==0.0.1"], ids=["no such", "no version", "another"]
)
def test_a_mistake_in_the_pin_is_told_with_its_file(
    pin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_text(f'[dependency-groups]\npinned = ["{pin}"]\n', encoding="utf-8")
    monkeypatch.setattr(device, "PYPROJECT", path)
    with pytest.raises(SystemExit, match=r"error: pyproject\.toml"), told():
        device.require_pinned_versions()
    path.write_text("[dependency-groups", encoding="utf-8")
    with pytest.raises(SystemExit, match=r"error: pyproject\.toml"), told():
        device.require_pinned_versions()


@pytest.mark.usefixtures("handlers")
def test_a_tool_on_a_stream_of_ascii_gets_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with told():
        print("0.9 ± 0.1", flush=True)
    assert raw.getvalue() == b"0.9 ? 0.1\n"


def test_a_half_saved_edit_of_another_stage_stops_none(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry_module, "_summary", lambda _: pytest.fail("read another stage"))
    code, _, error = entry("train", "foo", "0", *OUTPUTS)
    assert code == 1 and "names no variant foo" in error


def test_an_editors_dangling_link_is_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/train.py").touch()
    (tmp_path / "stages/.#train.py").symlink_to("someone@somewhere.1")
    monkeypatch.setattr(digests, "STAGES", tmp_path / "stages")
    assert [*digests.code_at_start.__wrapped__()] == ["stages/train.py"]


# Signals.


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_postponed_signal_is_obeyed_later(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop, told():
        postpone_signals()
        assert not signal_waits()
        signal.raise_signal(number)
        assert signal_waits()
        obey_signals()
    assert stop.value.code == 128 + number
    assert capfd.readouterr().err == (
        f"\nstopped by {number.name}; after this epoch, which is then saved; {GOES_ON}\n"
    )
    assert not signal_waits()
    obey_signals()  # once


OBEYING_FOR_LONG = """
import time
from stages.support.errors import postpone_signals, told
with told():
    try:
        if {postponed}:
            postpone_signals()
        print("begun", flush=True)
        while True:
            time.sleep(0.02)
    finally:
        while True:
            time.sleep(0.02)
"""


@pytest.mark.parametrize("postponed", [False, True])
@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_what_still_obeys_the_first(
    postponed: bool, first: signal.Signals, second: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OBEYING_FOR_LONG.format(postponed=postponed)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(first)
            assert any(f"stopped by {first.name}" in line for line in process.stdout)
            process.send_signal(second)
            assert process.wait() == -second
        finally:
            process.kill()


# Lost terminals, closed streams, and streams that lack a character.


def test_a_signal_is_obeyed_though_nobody_can_read_of_it() -> None:
    terminated = """
import signal
from stages.support.errors import told
with told():
    signal.raise_signal(signal.SIGTERM)
"""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        command = [sys.executable, "-c", terminated]
        done = subprocess.run(command, cwd=CHECKOUT, stderr=full, check=False)
    assert done.returncode == 128 + signal.SIGTERM


def forget_training(project: Project) -> None:
    """Remove what the training of `sgd` has made, so that it starts anew."""
    shutil.rmtree(project.folder / ".checkpoints")
    for out in project.lock()["stages"]["train@sgd-0"]["outs"]:
        (project.folder / out["path"]).unlink()


def test_a_training_outlives_its_terminal(project: Project) -> None:
    epochs = 20
    with project.params() as params:
        params["train"]["epochs"] = epochs
    command = project.command("train@sgd-0")
    forget_training(project)
    project.stage("train", *command[4:])
    before = project.digests()
    forget_training(project)

    def hold_on() -> None:
        """Have a terminal, and ignore its end, as `nohup` and `disown` do."""
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    ours, its = os.openpty()
    with subprocess.Popen(
        command,
        cwd=project.folder,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
        preexec_fn=hold_on,
    ) as process:
        os.close(its)
        seen = b""
        while b"Epoch [1/" not in seen:
            seen += os.read(ours, 1000)
        os.close(ours)
        assert process.wait() == 0
    assert f"Epoch [{epochs}/".encode() not in seen
    assert project.digests() == before


@pytest.mark.parametrize("streams", [">&-", "2>&-", ">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_training_needs_nobody_to_read_what_it_prints(streams: str, project: Project) -> None:
    before = project.digests()
    command = project.command("train@sgd-0")
    forget_training(project)
    project.run("sh", "-c", f'exec "$@" {streams}', "sh", *command)  # without a traceback
    assert project.digests() == before


@pytest.mark.parametrize("stage", ["evaluate@sgd", "compare"])
def test_ascii_shows_another_character_for_plus_minus(
    stage: str, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = project.digests()
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert "sgd" in (output := project.run(*project.command(stage)))
    assert " ? 0." in output
    assert project.digests() == before
