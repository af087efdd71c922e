"""`python -m stages`: what it answers, how it ends, and that no lost terminal ends it."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.__main__ import NAMES, main
from stages.learning import device
from stages.support import digests
from stages.support.errors import GOES_ON, errors_as_messages
from tests.conftest import CHECKOUT, Project

OUTPUTS = ["no", "no.safetensors", "no.csv", "no.csv"]
TOO_MUCH = 1 << 60  # bytes


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Leave this process its own handlers of signals."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


Entry = Callable[..., tuple[object, str, str]]


@pytest.fixture
def entry(
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
            with errors_as_messages():
                main()
        except SystemExit as stop:
            printed = capsys.readouterr()
            if isinstance(stop.code, str):  # as the interpreter does with a text
                return 1, printed.out, f"{printed.err}{stop.code}\n"
            return stop.code, *printed
        return 0, *capsys.readouterr()

    return run


def test_without_a_stage_the_entry_lists_every_stage_with_a_line(entry: Entry) -> None:
    code, answer, error = entry()
    assert (code, error) == (0, "")
    listed = answer.partition("stages:\n")[2].splitlines()[: len(NAMES)]
    assert all(len(line.split()) > 4 and line.endswith(".") for line in listed)
    modules = {path.stem for path in (CHECKOUT / "stages").glob("*.py")}
    assert {line.split()[0] for line in listed} == modules - {"__init__", "__main__"}


@pytest.mark.parametrize(
    ("arguments", "code", "answer"),
    [
        (["trian", "sgd"], 2, "invalid choice: 'trian' (choose from "),
        (["train", "adam"], 2, "the following arguments are required: seed, subset"),
        (["train", "adam", "zero", *OUTPUTS], 2, "argument seed: invalid int value: 'zero'"),
        (["train", "foo", "0", *OUTPUTS], 1, "names no variant foo with seed 0"),
        (["train", "adam", "99", *OUTPUTS], 1, "names no variant adam with seed 99"),
        (["train", "adam", "0", *OUTPUTS], 1, "no/train.safetensors"),
        (["evaluate", "foo", *["no"] * 7], 1, "names no variant foo"),
        (["subset", "no", "no"], 1, "no/train-images-idx3-ubyte"),
        (["promote", "params.yaml", "no"], 1, "params.yaml: is not one of this pipeline's tensor"),
        (["select", "no", "params.yaml", *["no"] * 3], 1, "params.yaml: "),
    ],
)
def test_a_wrong_command_line_is_answered(
    arguments: list[str], code: int, answer: str, entry: Entry
) -> None:
    found, _, error = entry(*arguments)
    assert found == code
    assert answer in error
    assert error.splitlines()[-1].startswith("error: " if code == 1 else "python -m stages")
    assert {path.name for path in Path.cwd().iterdir()} <= {"params.yaml", ".locks"}


MODULES = [
    path.relative_to(CHECKOUT).with_suffix("").as_posix().replace("/", ".")
    for folder in ("tools", "bench", "evidence")
    for path in sorted((CHECKOUT / folder).glob("*.py"))
    if "__main__" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.filterwarnings("ignore:.* found in sys.modules")
def test_no_other_command_ignores_an_argument(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(CHECKOUT)
    for argument, code in (("--help", 0), ("--hlep", 2)):
        monkeypatch.setattr(sys, "argv", [module, argument])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module(module, run_name="__main__")
        assert stop.value.code == code
        usage = f"usage: python -m {module.removesuffix('.__main__')} "
        assert usage in "".join(capsys.readouterr())


# Errors.


@pytest.mark.parametrize(
    "allocate",
    [lambda: torch.empty(TOO_MUCH, dtype=torch.uint8), lambda: np.empty(TOO_MUCH, np.uint8)],
    ids=["torch", "numpy"],
)
def test_out_of_memory_is_told_in_one_line(allocate: Callable[[], object]) -> None:
    with pytest.raises(SystemExit) as stop, errors_as_messages(GOES_ON):
        allocate()
    assert stop.value.code == f"error: out of memory; {GOES_ON}"


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
    with pytest.raises(SystemExit, match="error: out of memory"), errors_as_messages():
        raise RuntimeError(message)


@pytest.mark.parametrize("message", ["CUDA error: an illegal memory access", "mat1 and mat2"])
def test_any_other_error_of_torch_keeps_its_traceback(message: str) -> None:
    with pytest.raises(RuntimeError, match=message), errors_as_messages():
        raise RuntimeError(message)


@pytest.mark.parametrize(
    "content",
    [
        '[dependency-groups]\npinned = ["torsh==2.14.1"]',
        '[dependency-groups]\npinned = ["torch == "]',
        "[dependency-groups",
    ],
    ids=["no such package", "no version", "no TOML"],
)
def test_a_mistake_in_pyproject_is_told_with_its_remedy(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "PYPROJECT", tmp_path / "pyproject.toml")
    device.PYPROJECT.write_text(content, encoding="utf-8")
    message = r"^error: .*pyproject\.toml.*`git checkout pyproject.toml` restores it$"
    with pytest.raises(SystemExit, match=message), errors_as_messages():
        device.require_pinned_versions()


def test_what_editors_leave_is_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/train.py").touch()
    (tmp_path / "stages/.#train.py").symlink_to("someone@somewhere.1")  # as Emacs leaves
    (tmp_path / "stages/.ipynb_checkpoints").mkdir()
    (tmp_path / "stages/.ipynb_checkpoints/train-checkpoint.py").touch()
    monkeypatch.setattr(digests, "STAGES", tmp_path / "stages")
    assert [*digests.code_at_start.__wrapped__()] == ["stages/train.py"]


# Signals.


OBEYING_FOR_LONG = """
import time
from stages.support.errors import postpone_signals, errors_as_messages
with errors_as_messages():
    try:
        if {postponed}:
            postpone_signals()
        print("begun", flush=True)
        time.sleep(60)
    finally:
        time.sleep(60)
"""


@pytest.mark.parametrize("postponed", [False, True])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_at_once_what_still_obeys_the_first(
    postponed: bool, second: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OBEYING_FOR_LONG.format(postponed=postponed)],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert any("SIGINT" in line for line in process.stdout)
        process.send_signal(second)
        assert process.wait() == -second


# Lost terminals, closed streams, and streams that lack a character.


def test_a_signal_is_obeyed_though_nobody_can_read_of_it() -> None:
    terminated = """
import signal
from stages.support.errors import errors_as_messages
with errors_as_messages():
    signal.raise_signal(signal.SIGTERM)
"""
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        command = [sys.executable, "-c", terminated]
        done = subprocess.run(command, cwd=CHECKOUT, stderr=full, check=False)
    assert done.returncode == 128 + signal.SIGTERM


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_who_reads_no_further_gets_no_complaint(
    unbuffered: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    printing = """
from stages.support.errors import errors_as_messages
with errors_as_messages():
    print("more")
"""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", printing]
    with os.fdopen(writing, "w") as pipe:
        done = subprocess.run(
            command, cwd=CHECKOUT, stdout=pipe, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.fixture
def untrained(project: Project) -> Project:
    """A project that lacks what the training of `sgd` makes."""
    shutil.rmtree(project.folder / ".checkpoints")
    for out in project.lock()["stages"]["train@sgd-0"]["outs"]:
        (project.folder / out["path"]).unlink()
    return project


def test_a_training_outlives_its_terminal(untrained: Project, finished: Project) -> None:
    ours, its = os.openpty()
    with subprocess.Popen(
        untrained.command("train@sgd-0"),
        cwd=untrained.folder,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,  # as with `nohup`, no signal tells of the end of the terminal
    ) as process:
        os.close(its)
        seen = b""
        while b"parameters" not in seen:
            seen += os.read(ours, 1)
        os.close(ours)
        assert process.wait() == 0
    assert untrained.digests() == finished.digests()


@pytest.mark.parametrize("streams", [">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_a_training_needs_nobody_to_read_what_it_prints(
    streams: str, untrained: Project, finished: Project
) -> None:
    command = untrained.command("train@sgd-0")
    untrained.run("sh", "-c", f'exec "$@" {streams}', "sh", *command)
    assert untrained.digests() == finished.digests()


def test_ascii_shows_another_character_for_plus_minus(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    for command in (project.command("evaluate@sgd"), ["python", "-m", "tools.progress"]):
        assert "? 0." in project.run(*command)
