"""What planning and recording cost in large graphs, by trainings that only sleep."""

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path

from dvc.repo import Repo  # type: ignore[import-untyped]

from bench.pipeline import make_repository, seconds, write_stages
from stages.support.errors import told

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
    parser.add_argument("jobs", type=int, help="how many at a time")
    parser.add_argument(
        "files", type=int, choices=(1, 10), help="dvc.yaml for the trainings; 10: one a variant"
    )
    options = parser.parse_args()
    trainings, jobs, files = options.trainings, options.jobs, options.files
    if trainings < 1 or trainings % len(VARIANTS) or jobs < 1:
        parser.error("trainings come in multiples of 10, jobs from 1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_graph(folder, trainings // len(VARIANTS), files)
        plan = seconds(folder, *SNAKEMAKE, "--dry-run")
        whole = seconds(folder, *SNAKEMAKE, "--cores", str(jobs))
        graph = statistics.median(graph_seconds(folder) for _ in range(TURNS))
        one = ("dvc", "repro", "--single-item", "v0/dvc.yaml:train@v0-0")
        recorded = statistics.median(seconds(folder, *one, "--force") for _ in range(TURNS)) - SLEEP
        unchanged = statistics.median(seconds(folder, *one) for _ in range(TURNS))
        again = seconds(folder, "dvc", "repro", "--all-pipelines")
        size = max(path.stat().st_size for path in folder.rglob("dvc.lock"))
    stages = 2 + trainings + len(VARIANTS)
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
                "wdir": "..",
                "cmd": f"sleep {SLEEP} && echo ${{item.seed}} > {model}",
                "deps": ["subset"],
                "outs": [model],
            },
            "evaluate": {
                "matrix": {"variant": variants},
                "wdir": "..",
                "cmd": f"ls {models} > {metrics}",
                "deps": [models],
                "outs": [metrics],
            },
        }
        (folder / variants[0]).mkdir()
        write_stages(folder / variants[0], stages)


if __name__ == "__main__":
    with told():
        main()
