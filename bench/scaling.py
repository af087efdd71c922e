"""What planning and recording cost in large graphs, by trainings that only sleep."""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dvc.repo import Repo  # type: ignore[import-untyped]

from bench.pipeline import command_seconds, make_repository, run, write_stages
from stages.support.errors import errors_as_messages
from tools.mend import mend

CHECKOUT = Path(__file__).parents[1]
SNAKEMAKE = (
    *("snakemake", "--snakefile", str(CHECKOUT / "Snakefile")),
    *("--workflow-profile", str(CHECKOUT / "profiles/default")),
)
VARIANTS = [f"v{number}" for number in range(10)]
SLEEP = 10  # seconds that a training takes
TURNS = 3


def main() -> None:
    """Print what so many trainings take, so many at a time: a row of docs/scaling.md's table."""
    parser = argparse.ArgumentParser("python -m bench.scaling", description=main.__doc__)
    parser.add_argument("trainings", type=int, help="a multiple of 10: of ten variants")
    parser.add_argument(
        "jobs", type=int, help="how many at a time; 0: record the results without running anything"
    )
    parser.add_argument(
        "files", type=int, choices=(1, 10), help="dvc.yaml for the trainings; 10: one a variant"
    )
    options = parser.parse_args()
    trainings, jobs, files = options.trainings, options.jobs, options.files
    if trainings < 1 or trainings % len(VARIANTS) or jobs < 0:
        parser.error("trainings come in multiples of 10, jobs from 0")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_graph(folder, trainings // len(VARIANTS), files)
        plan = command_seconds(folder, *SNAKEMAKE, "--dry-run")
        if jobs:
            whole = f"{command_seconds(folder, *SNAKEMAKE, '--cores', str(jobs)):,.0f} s"
            least = f"{SLEEP * math.ceil(trainings / jobs):,} s"
        else:
            record(folder, trainings // len(VARIANTS))
            whole = least = "-"
        graph = statistics.median(locked_seconds(folder, ask_graph) for _ in range(TURNS))
        mending = statistics.median(locked_seconds(folder, mend) for _ in range(TURNS))
        one = ("dvc", "repro", "--single-item", "variants/v0/dvc.yaml:train@v0-0")
        forced = statistics.median(command_seconds(folder, *one, "--force") for _ in range(TURNS))
        unchanged = statistics.median(command_seconds(folder, *one) for _ in range(TURNS))
        again = command_seconds(folder, "dvc", "repro", "--all-pipelines")
        size = max(path.stat().st_size for path in folder.rglob("dvc.lock"))
    stages = 2 + trainings + len(VARIANTS)
    print(
        f"| {trainings:,} | {stages:,} | {files} | {jobs} | {plan:.1f} s | {graph:.2f} s "
        f"| {mending:.2f} s | {least} | {whole} | {forced - SLEEP:.2f} s | {unchanged:.2f} s "
        f"| {again:.1f} s | {size / 1e3:,.0f} kB |"
    )


def record(folder: Path, seeds: int) -> None:
    """Write what the stages would, and let DVC record it."""
    for variant in VARIANTS:
        for seed in range(seeds):
            (folder / "models" / variant / str(seed)).write_text(f"{seed}\n", encoding="utf-8")
        names = sorted(map(str, range(seeds)))
        (folder / "metrics" / variant).write_text("\n".join([*names, ""]), encoding="utf-8")
    (folder / "subset").write_text("\n", encoding="utf-8")
    (folder / "all").touch()
    run(folder, "dvc", "commit", "--force")


def ask_graph(repo: Repo) -> None:
    """Ask DVC for the graph, as the Snakefile does once per run."""
    assert repo.index.graph


def locked_seconds(folder: Path, work: Callable[[Repo], None]) -> float:
    """Return how long work takes while it holds DVC's lock."""
    with Repo(str(folder)) as repo, repo.lock:
        started = time.perf_counter()
        work(repo)
        return time.perf_counter() - started


def write_graph(folder: Path, seeds: int, files: int) -> None:
    """Make a repository with the shape of this pipeline, and its trainings in so many dvc.yaml."""
    models, metrics = "models/${item.variant}", "metrics/${item.variant}"
    model = f"{models}/${{item.seed}}"
    (folder / "metrics").mkdir()
    for variant in VARIANTS:
        (folder / "models" / variant).mkdir(parents=True)
    everything = [f"metrics/{variant}" for variant in VARIANTS]
    shared = {
        "subset": {"cmd": "echo > subset", "outs": ["subset"]},
        "compare": {"cmd": "cat metrics/v* > all", "deps": everything, "outs": ["all"]},
    }
    make_repository(folder, shared)
    for number in range(files):
        variants = VARIANTS[number::files]
        stages = {
            "train": {
                "matrix": {"variant": variants, "seed": [*range(seeds)]},
                "wdir": "../..",
                "cmd": f"sleep {SLEEP} && echo ${{item.seed}} > {model}",
                "deps": ["subset"],
                "outs": [model],
            },
            "evaluate": {
                "matrix": {"variant": variants},
                "wdir": "../..",
                "cmd": f"ls {models} > {metrics}",
                "deps": [models],
                "outs": [metrics],
            },
        }
        place = folder / "variants" / variants[0]
        place.mkdir(parents=True)
        write_stages(place, stages)


if __name__ == "__main__":
    with errors_as_messages():
        main()
