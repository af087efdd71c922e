"""What planning and recording cost in large graphs, by stages that only sleep."""

import math
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from dvc.repo import Repo  # type: ignore[import-untyped]
from ruamel.yaml import YAML

from stages.lib.command import InputError, run

CHECKOUT = Path(__file__).parents[1]
SNAKEMAKE = (
    *("snakemake", "--snakefile", str(CHECKOUT / "Snakefile")),
    *("--workflow-profile", str(CHECKOUT / "profiles/default")),
)
VARIANTS = 10
SLEEP = 10  # seconds that a training takes
TURNS = 3


def main(trainings: int, jobs: int, files: int) -> None:
    """Print what so many trainings take, so many at a time, as a row of a table.

    The stages stand in one dvc.yaml, with one dvc.lock beside it, or, with 10 files, in one for
    each variant. The row: trainings, stages, files, at a time; planning, DVC's graph, sleeping
    alone, the whole run; a training without its sleep, and one that is unchanged; a `dvc repro`
    with nothing to do; the largest dvc.lock.
    """
    if trainings < 1 or trainings % VARIANTS or jobs < 1 or files not in (1, VARIANTS):
        raise InputError(
            f"trainings come in multiples of {VARIANTS}, jobs from 1, files are 1 or {VARIANTS}: "
            f"not {trainings}, {jobs}, {files}"
        )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first, stages = write_graph(folder, trainings, files)

        def seconds(*command: str) -> float:
            started = time.perf_counter()
            done = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
            if done.returncode:
                raise InputError(f"{' '.join(command)}:\n{done.stdout}{done.stderr}")
            return time.perf_counter() - started

        plan = seconds(*SNAKEMAKE, "--dry-run")
        whole = seconds(*SNAKEMAKE, "--cores", str(jobs))
        graph = statistics.median(graph_seconds(folder) for _ in range(TURNS))
        one = ("dvc", "repro", "--single-item", first)
        recorded = statistics.median(seconds(*one, "--force") - SLEEP for _ in range(TURNS))
        unchanged = statistics.median(seconds(*one) for _ in range(TURNS))
        again = seconds("dvc", "repro", "--all-pipelines")
        size = max(path.stat().st_size for path in folder.rglob("dvc.lock"))
    least = SLEEP * math.ceil(trainings / jobs)
    print(
        f"| {trainings:,} | {stages:,} | {files} | {jobs} | {plan:.1f} s | {graph:.2f} s "
        f"| {least:,.0f} s | {whole:,.0f} s | {recorded:.2f} s | {unchanged:.2f} s | {again:.1f} s "
        f"| {size / 1e3:,.0f} kB |"
    )


def graph_seconds(folder: Path) -> float:
    """Return how long the Snakefile's question to DVC takes, during which it holds DVC's lock."""
    with Repo(str(folder)) as repo, repo.lock:
        started = time.perf_counter()
        assert repo.index.graph
        return time.perf_counter() - started


def write_graph(folder: Path, trainings: int, files: int) -> tuple[str, int]:
    """Make a repository with the shape of this pipeline; return a training, and how many stages."""
    variants = [f"v{i}" for i in range(VARIANTS)]
    seeds = list(range(trainings // VARIANTS))
    stages: dict[str, Any] = {
        "subset": {"cmd": "echo > subset", "outs": ["subset"]},
        "compare": {
            "cmd": "cat metrics/v* > all",
            "deps": [f"metrics/{variant}" for variant in variants],
            "outs": ["all"],
        },
    }
    for variant in variants:
        (folder / "models" / variant).mkdir(parents=True)
        (folder / variant).mkdir()
    (folder / "metrics").mkdir()
    for root, some in [("", variants)] if files == 1 else [(f"{v}/", [v]) for v in variants]:
        up = "../" if root else ""
        model = f"{up}models/${{item.variant}}/${{item.seed}}"
        graph = {
            "train": {
                "matrix": {"variant": some, "seed": seeds},
                "cmd": f"sleep {SLEEP} && echo ${{item.seed}} > {model}",
                "deps": [f"{up}subset"],
                "outs": [model],
            },
            "evaluate": {
                "matrix": {"variant": some},
                "cmd": f"ls {up}models/${{item.variant}} > {up}metrics/${{item.variant}}",
                "deps": [f"{up}models/${{item.variant}}"],
                "outs": [f"{up}metrics/${{item.variant}}"],
            },
        }
        if root:
            YAML().dump({"stages": graph}, folder / root / "dvc.yaml")
        else:
            stages |= graph
    YAML().dump({"stages": stages}, folder / "dvc.yaml")
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=folder, check=True)
    first = "train@v0-0" if files == 1 else "v0/dvc.yaml:train@v0-0"
    return first, 2 + trainings + VARIANTS


if __name__ == "__main__":
    run(main)
