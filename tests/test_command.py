"""The stages as commands: a wrong command line is answered, not traced back."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import stages
from stages.lib import command
from tests.conftest import CHECKOUT

OUTPUTS = ["no", "no.safetensors", "no.csv", "no.csv"]


@pytest.mark.parametrize(
    ("arguments", "code", "answer"),
    [
        (["train", "foo", "0", *OUTPUTS], 1, "names no variant foo with seed 0"),
        (["train", "adam", "99", *OUTPUTS], 1, "names no variant adam with seed 99"),
        (["train", "adam", "zero", *OUTPUTS], 2, "argument seed: invalid int value: 'zero'"),
        (["train", "adam"], 2, "the following arguments are required: seed, subset"),
        (["train", "adam", "0", *OUTPUTS], 1, "no/train.safetensors"),
        (["evaluate", "foo", *["no"] * 6], 1, "names no variant foo"),
        (["subset", "no", "no"], 1, "No such file or directory: 'no/train-images-idx3-ubyte'"),
        (["promote", "README.md", "no"], 1, "README.md: not readable as a file of ours"),
        (["select", "no", "README.md", "no", "no"], 1, "README.md"),
    ],
)
def test_a_wrong_command_line_is_answered(arguments: list[str], code: int, answer: str) -> None:
    stage, *rest = arguments
    before = visible()
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}", *rest],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert answer in done.stderr
    assert visible() == before


def visible() -> set[Path]:
    """Return what lies in the checkout, caches and locks aside, which come when they are needed."""
    return {path for path in CHECKOUT.iterdir() if not path.name.startswith(".")}


@pytest.fixture
def run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `command.run` see no arguments, and leave this process its signals."""
    monkeypatch.setattr(sys, "argv", ["a stage"])
    monkeypatch.setattr(command, "catch_signals", lambda: None)
    monkeypatch.setattr(command, "_read", {})


TOO_MUCH = 1 << 60  # bytes


@pytest.mark.usefixtures("run_alone")
@pytest.mark.parametrize(
    "allocate",
    [lambda: torch.empty(TOO_MUCH, dtype=torch.uint8), lambda: np.empty(TOO_MUCH, np.uint8)],
    ids=["torch", "numpy"],
)
def test_out_of_memory_is_told_in_one_line(allocate: Callable[[], object]) -> None:
    def stage() -> None:
        allocate()

    with pytest.raises(SystemExit) as stop:
        command.run(stage)
    assert stop.value.code == f"error: out of memory; {command.GOES_ON}"


@pytest.mark.usefixtures("run_alone")
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
    def stage() -> None:
        raise RuntimeError(message)

    with pytest.raises(SystemExit, match="error: out of memory"):
        command.run(stage)


@pytest.mark.usefixtures("run_alone")
@pytest.mark.parametrize("message", ["CUDA error: an illegal memory access", "mat1 and mat2"])
def test_any_other_error_of_torch_keeps_its_traceback(message: str) -> None:
    def stage() -> None:
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match=message):
        command.run(stage)


def test_an_editors_dangling_link_is_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/train.py").write_text("", encoding="utf-8")
    (tmp_path / "stages/.#train.py").symlink_to("someone@somewhere.1")
    monkeypatch.setattr(stages, "FOLDER", tmp_path / "stages")
    assert [*stages.code_digests()] == ["stages/train.py"]


OBEYING_FOR_LONG = """
import time
from stages.lib.command import catch_signals
catch_signals()
try:
    print("begun", flush=True)
    while True:
        time.sleep(0.02)
finally:
    while True:
        time.sleep(0.02)
"""


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_what_still_obeys_the_first(
    first: signal.Signals, second: signal.Signals
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OBEYING_FOR_LONG],
        cwd=CHECKOUT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(first)
        assert any(f"stopped by {first.name}" in line for line in process.stdout)
        process.send_signal(second)
        try:
            assert process.wait(timeout=60) == -second
        finally:
            process.kill()
