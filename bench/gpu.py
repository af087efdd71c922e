"""Train on a GPU: seconds per epoch, what saving costs, and whether the same bytes come again.

It needs `data/subset` and the packages of the group `pipeline`, but neither DVC nor git nor a
network. The installed torch serves, whatever pyproject.toml pins.
"""

import argparse
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.learning.history import EpochRow
from stages.support import machine
from stages.support.checkpoints import CHECKPOINTS
from stages.support.digests import short_sha256
from stages.support.errors import InputError, errors_as_messages
from stages.support.tables import read_table
from tools.copies import plain_params, write_params
from tools.table import Timing

VARIANTS = ("sgd", "sigmoid")
PRECISIONS = ("bf16", "fp32")
NEVER, ALWAYS = "1e9", "0"  # costs between two saves


@dataclass(frozen=True)
class Training:
    """What came of a training."""

    bytes: tuple[str, ...]  # digests of weights and history
    seconds: float  # median epoch, after the first
    accuracy: float  # on the test images, after the last epoch
    printed: str


def main() -> None:
    """Print a table with a row for each precision and variant, as Markdown."""
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu tries the script without a GPU")
    device = parser.parse_args().device
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("PyTorch finds no GPU here (torch.cuda.is_available())")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, device)
        place = machine.describe(torch.device(device))
        print("; ".join(f"{key} {value}" for key, value in place.items()))
        columns = (
            *("precision", "variant", "test accuracy", "epoch", "saving every epoch"),
            *("saving by default", "same bytes again", "same bytes after a kill"),
        )
        print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
        for precision in PRECISIONS:
            for variant in VARIANTS:
                print(row(folder, precision, variant), flush=True)


def prepare(folder: Path, device: str) -> None:
    """Make a folder in which the stage `train` runs with the installed torch."""
    subset = Path("data/subset").absolute()
    if not subset.exists():
        raise InputError(f"{subset} is not there; `dvc repro subset` makes it")
    shutil.copytree("stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "data").mkdir()
    (folder / "data/subset").symlink_to(subset)
    pins = Path("pyproject.toml").read_text(encoding="utf-8")
    installed = torch.__version__.partition("+")[0]
    pins = re.sub(r'"torch==[^"]+"', f'"torch=={installed}"', pins)
    (folder / "pyproject.toml").write_text(pins, encoding="utf-8")
    params = plain_params(Path())
    if params["train"]["epochs"] < 2:
        raise InputError("params.yaml: train.epochs: 2 or more, since the first epoch is not timed")
    params["train"]["device"] = device
    write_params(folder, params)


def row(folder: Path, precision: str, variant: str) -> str:
    """Return a row of the table."""
    params = plain_params(folder)
    params["train"]["precision"] = precision
    write_params(folder, params)
    unsaved, always, by_default = (
        trained(folder, variant, costs) for costs in (NEVER, ALWAYS, "20")
    )
    forget(folder)
    kill_after_an_epoch(folder, variant)
    resumed = train(folder, variant, ALWAYS)
    if "goes on after epoch" not in resumed.printed:
        raise InputError(f"the killed training did not go on:\n{resumed.printed}")
    again = unsaved.bytes == always.bytes == by_default.bytes
    return (
        f"| {precision} | {variant} | {unsaved.accuracy} | {unsaved.seconds:.2f} s "
        f"| {always.seconds / unsaved.seconds:.3f} | {by_default.seconds / unsaved.seconds:.3f} "
        f"| {'yes' if again else 'NO'} | {'yes' if resumed.bytes == unsaved.bytes else 'NO'} |"
    )


def forget(folder: Path) -> None:
    """Remove the checkpoints, so that the next training begins anew."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def trained(folder: Path, variant: str, costs: str) -> Training:
    """Train anew."""
    forget(folder)
    return train(folder, variant, costs)


def command(variant: str, costs: str) -> list[str]:
    """Return the command of the stage `train`, which saves after so many costs of a save."""
    stage = (sys.executable, "-m", "stages", "train", "--costs-between-saves", costs)
    outputs = ("weights.safetensors", "history.csv", "timing.csv")
    return [*stage, variant, "0", "data/subset", *outputs]


def train(folder: Path, variant: str, costs: str) -> Training:
    """Train, from a checkpoint if there is one."""
    done = subprocess.run(
        command(variant, costs), cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(f"{done.stdout}{done.stderr}")
    history = read_table(folder / "history.csv", EpochRow)
    timing = read_table(folder / "timing.csv", Timing)
    return Training(
        bytes=tuple(short_sha256(folder / name) for name in ("weights.safetensors", "history.csv")),
        seconds=statistics.median(row.seconds for row in timing[1:]),
        accuracy=history[-1].test_accuracy,
        printed=done.stdout,
    )


def kill_after_an_epoch(folder: Path, variant: str) -> None:
    """Train until the first epoch is saved, and kill the training."""
    with subprocess.Popen(
        command(variant, ALWAYS), cwd=folder, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.rstrip().endswith("saved"):
                os.kill(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    with errors_as_messages():
        main()
