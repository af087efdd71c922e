"""The stages as commands: a wrong command line is answered, not traced back."""

import subprocess
import sys

import pytest

from tests.conftest import CHECKOUT

OUTPUTS = ["no", "no.safetensors", "no.csv", "no.csv"]


@pytest.mark.parametrize(
    ("command", "code", "answer"),
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
def test_a_wrong_command_line_is_answered(command: list[str], code: int, answer: str) -> None:
    stage, *arguments = command
    before = {*CHECKOUT.iterdir(), CHECKOUT / ".locks"}
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}", *arguments],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert answer in done.stderr
    assert set(CHECKOUT.iterdir()) <= before
