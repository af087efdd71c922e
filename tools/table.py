"""Print README's table of results, in Markdown, from the metrics and the timings."""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from stages.reporting.summary import Summary, Uncertainty
from stages.reporting.tables import CurveRow
from stages.support.errors import InputError, errors_as_messages
from stages.support.params import load_params
from stages.support.tables import read_record, read_table

README = Path("README.md")
COLUMNS = (
    "variant",
    "test accuracy",
    "best test accuracy",
    "batch statistics",
    "train accuracy",
    "mean fall",
    "seconds per epoch",
)


class Timing(BaseModel):
    """How long an epoch took, and where: a row of metrics/timing."""

    model_config = ConfigDict(frozen=True, extra="allow")
    __pydantic_extra__: dict[str, str]

    seconds: float


def main() -> None:
    """Print the table, or check that README has it."""
    parser = argparse.ArgumentParser("python -m tools.table", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="only check that README has all but the seconds"
    )
    if parser.parse_args().check:
        require_in_readme()
    else:
        print_table()


def print_table() -> None:
    """Print README's table of results: a row per variant, and where it ran."""
    params = load_params()
    lines, places = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"], set()
    for variant, start in row_starts():
        timings = [
            row
            for seed in params.seeds
            if (path := Path(f"metrics/timing/{variant}/{seed}.csv")).exists()  # not in a new clone
            for row in read_table(path, Timing)
        ]
        places |= {describe(row.__pydantic_extra__) for row in timings}
        seconds = [row.seconds for row in timings]
        median = f"{statistics.median(seconds):.1f}" if seconds else "not in this checkout"
        lines.append(f"{start} {median} |")
    one = "1 seed; ± is the distance to the farther end of the 95 % binomial interval"
    several = f"{len(params.seeds)} seeds; ± is the standard deviation over them"
    seeds = several if params.seeds[1:] else one
    print("\n".join(lines))
    print(f"\nAfter {params.train.epochs} epochs, {seeds}; seconds are the median epoch.", end="")
    print("".join(f" Ran on {place}." for place in sorted(places)))


def require_in_readme() -> None:
    """Check that README shows the metrics of every variant.

    Raises:
        InputError: README shows others.
    """
    lines = README.read_text(encoding="utf-8").splitlines()
    for _, start in row_starts():
        if not any(line.startswith(start) for line in lines):
            raise InputError(f"{README} lacks the row {start} ...: put in what `make table` prints")


def row_starts() -> Iterator[tuple[str, str]]:
    """Yield each variant, and its row of the table but for the seconds.

    Raises:
        InputError: the results are of other epochs or seeds than params.yaml has.
    """
    params = load_params()
    for variant in params.variants:
        summary = read_record(Path(f"metrics/summary/{variant}.json"), Summary)
        doubt = read_record(Path(f"metrics/uncertainty/{variant}.json"), Uncertainty)
        rows = read_table(Path(f"metrics/curves/{variant}.csv"), CurveRow)
        seeds = [*dict.fromkeys(row.seed for row in rows)]
        if (doubt.epochs, seeds) != (params.train.epochs, params.seeds):
            raise InputError(
                f"the results of {variant} have {doubt.epochs} epochs and the seeds {seeds}; "
                "params.yaml asks for others: `dvc repro` first"
            )
        epoch = round(summary.best_epoch, 1)  # a mean over the seeds
        cells = (
            variant,
            f"{summary.accuracy:.4f} ± {doubt.accuracy_plus_minus:.4f}",
            f"{summary.best:.4f} ± {doubt.best_plus_minus:.4f} (epoch {epoch:g})",
            f"{doubt.batch_statistics:.4f} ± {doubt.batch_statistics_plus_minus:.4f}",
            f"{summary.train:.4f}",
            "" if summary.falls is None else f"{summary.falls:.4f}",
        )
        yield variant, "| " + " | ".join(cells) + " |"


def describe(place: dict[str, str]) -> str:
    """Return in words where an epoch ran. Older timings may lack a column, or a value in it."""
    known = {key: value for key, value in place.items() if value or key == "processor"}
    place = defaultdict(lambda: "unknown", known)
    return (
        f"{place['processor'] or 'a processor without a name'} ({place['machine']} "
        f"{place['instructions']}), {place['cores']} cores, {place['threads']} threads, "
        f"{place['precision']} on {place['device']}, {place['system']}, Python {place['python']}, "
        f"NumPy {place['numpy']}, torch {place['torch']}, torchvision {place['torchvision']}"
    )


if __name__ == "__main__":
    with errors_as_messages():
        main()
