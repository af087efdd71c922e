"""What DVC and the other stages cost beside the training."""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ruamel.yaml import YAML

from stages.lib.command import InputError, run
from tools.smoke import read_params, write_params

RAW = Path("data/raw")
TURNS = 5


def main() -> None:
    """Print what a `dvc repro` with nothing to do takes, and the subset of the whole data set."""
    with tempfile.TemporaryDirectory() as folder:
        print(nothing_to_do(Path(folder)))
    with tempfile.TemporaryDirectory() as folder:
        print(whole_subset(Path(folder)))


def nothing_to_do(folder: Path) -> str:
    """Return in words how long DVC looks at this pipeline, and at a trivial one of as many stages.

    Args:
        folder: an empty one, for the trivial pipeline.

    Raises:
        InputError: this pipeline has something to do.
    """
    dry = subprocess.run(["dvc", "repro", "--dry"], check=True, capture_output=True, text=True)
    if "Running stage" in dry.stdout:
        raise InputError("there is something to do: `dvc repro` first")
    count = len(YAML(typ="safe").load(Path("dvc.lock"))["stages"])
    stages = {}
    for name in map(str, range(count)):
        (folder / name).write_text(name, encoding="utf-8")
        stages[name] = {"cmd": f"cp {name} {name}.out", "deps": [name], "outs": [f"{name}.out"]}
    YAML().dump({"stages": stages}, folder / "dvc.yaml")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "repro", "-q"]):
        subprocess.run(command, cwd=folder, check=True)
    seconds: dict[Path, list[float]] = {Path(): [], folder: []}
    for _ in range(TURNS):
        for place, measured in seconds.items():
            started = time.perf_counter()
            subprocess.run(["dvc", "repro"], cwd=place, check=True, capture_output=True)
            measured.append(time.perf_counter() - started)
    ours, trivial = (statistics.median(measured) for measured in seconds.values())
    return (
        f"`dvc repro` with nothing to do: {ours:.2f} s; in a trivial pipeline of as many stages, "
        f"{count}: {trivial:.2f} s; ratio {ours / trivial:.2f} (medians of {TURNS}, in turns)."
    )


def whole_subset(folder: Path) -> str:
    """Return in words what the stage `subset` takes for all images: seconds, and memory.

    Args:
        folder: an empty one, for its files.
    """
    shutil.copy2("params.yaml", folder)
    params = read_params(folder)
    params["data"]["per_class"] = "all"
    write_params(folder, params)
    environment = os.environ | {"PYTHONPATH": str(Path.cwd())}
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "stages.subset", str(RAW.absolute()), "subset"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise InputError(f"the stage subset fails on all of {RAW}; see above")
    size = sum(file.stat().st_size for file in (folder / "subset").iterdir())
    held = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return (
        f"The subset of all images of {RAW}: {seconds:.2f} s, {held / 1e6:.0f} MB of memory, "
        f"Python's included, for {size / 1e6:.0f} MB of data."
    )


if __name__ == "__main__":
    run(main)
