"""What DVC and the stage `subset` cost beside the training."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from ruamel.yaml import YAML

from stages.support.errors import InputError, errors_as_messages
from stages.support.git import environment_without_git_variables
from tools.copies import plain_params, write_params

RAW = Path("data/raw")
TURNS = 5


def main() -> None:
    """Print what a `dvc repro` with nothing to do takes, and the subset of the whole data set."""
    for measurement in (nothing_to_do, whole_subset):
        with tempfile.TemporaryDirectory() as folder:
            print(measurement(Path(folder)))


def nothing_to_do(empty: Path) -> str:
    """Return in words how long DVC looks at this pipeline, and at a trivial one of as many stages.

    The trivial pipeline is made in the empty folder. An InputError says that something is to do.
    """
    if "Running stage" in run(Path(), "dvc", "repro", "--dry"):
        raise InputError("there is something to do: `dvc repro` first")
    count = len(YAML(typ="safe").load(Path("dvc.lock"))["stages"])
    stages = {}
    for name in map(str, range(count)):
        (empty / name).write_text(name, encoding="utf-8")
        stages[name] = {"cmd": f"cp {name} {name}.out", "deps": [name], "outs": [f"{name}.out"]}
    make_repository(empty, stages)
    run(empty, "dvc", "repro")
    turns = [
        [command_seconds(place, "dvc", "repro") for place in (Path(), empty)] for _ in range(TURNS)
    ]
    ours, trivial = map(statistics.median, zip(*turns, strict=True))
    return (
        f"`dvc repro` with nothing to do: {ours:.2f} s; in a trivial pipeline of as many stages, "
        f"{count}: {trivial:.2f} s; ratio {ours / trivial:.2f} (medians of {TURNS}, in turns)."
    )


def whole_subset(empty: Path) -> str:
    """Return in words what the stage `subset`, in the empty folder, takes for all images."""
    params = plain_params(Path())
    params["data"]["per_class"] = "all"
    write_params(empty, params)
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "stages", "subset", str(RAW.absolute()), "subset"],
        cwd=empty,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)  # tells what this child has used, and no other
    took = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise InputError(f"the stage subset fails on all of {RAW}; see above")
    size = sum(file.stat().st_size for file in (empty / "subset").iterdir())
    held = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return (
        f"The subset of all images of {RAW}: {took:.2f} s, {held / 1e6:.0f} MB of memory, "
        f"Python's included, for {size / 1e6:.0f} MB of data."
    )


def run(folder: Path, *command: str) -> str:
    """Run the command in the folder and return what it printed, or raise an InputError."""
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment_without_git_variables(),
        check=False,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise InputError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def command_seconds(folder: Path, *command: str) -> float:
    """Return how long the command takes in the folder."""
    started = time.perf_counter()
    run(folder, *command)
    return time.perf_counter() - started


def make_repository(folder: Path, stages: Mapping[str, object]) -> None:
    """Make a repository of git and DVC with these stages."""
    write_stages(folder, stages)
    run(folder, "git", "init", "--quiet")
    run(folder, "dvc", "init", "--quiet")


def write_stages(folder: Path, stages: Mapping[str, object]) -> None:
    """Write a dvc.yaml, as JSON, which is YAML too."""
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}), encoding="utf-8")


if __name__ == "__main__":
    argparse.ArgumentParser("python -m bench.pipeline", description=__doc__).parse_args()
    with errors_as_messages():
        main()
