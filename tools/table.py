"""Print README's table of results, in Markdown, from the metrics and the timings."""

import json
import statistics
from pathlib import Path
from typing import Any

from stages.lib.command import InputError, run
from stages.lib.files import Row
from stages.lib.params import load_params
from stages.lib.results import read_rows

COLUMNS = (
    "variant",
    "test accuracy",
    "best test accuracy",
    "with batch statistics",
    "train accuracy",
    "oscillation",
    "seconds per epoch",
)


def main() -> None:
    """Print README's table of results: a row per variant, and where it ran."""
    params = load_params()
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    places = set()
    for variant in params.variants:
        summary = read_summary(Path(f"metrics/summary/{variant}.json"))
        timings = [
            row
            for seed in params.seeds
            if (path := Path(f"metrics/timing/{variant}/{seed}.csv")).exists()  # or in DVC's cache
            for row in read_rows(path, ["seconds"])
        ]
        places |= {describe(row) for row in timings}
        seconds = [float(row["seconds"]) for row in timings]
        median = f"{statistics.median(seconds):.1f}" if seconds else "in DVC's cache: `dvc pull`"
        print("| " + " | ".join((variant, *cells(summary), median)) + " |")
    one = "1 seed; ± reaches the farther end of the 95 % binomial interval"
    several = f"{len(params.seeds)} seeds; ± is the standard deviation over them"
    seeds = several if params.seeds[1:] else one
    print(f"\nAfter {summary['epochs']} epochs, {seeds}; seconds are the median epoch.", end="")
    print("".join(f" Ran on {place}." for place in sorted(places)))


def cells(summary: dict[str, Any]) -> tuple[str, ...]:
    """Return what the table says of a variant's summary, in the order of its columns."""
    test = summary["test"]
    return (
        in_words(test, "accuracy"),
        f"{in_words(test, 'best_accuracy')} (epoch {test['best_epoch']:.3g})",
        in_words(test, "accuracy_batch_statistics"),
        f"{summary['train']['accuracy']:.4f}",
        "" if summary["oscillation"] is None else f"{summary['oscillation']:.4f}",
    )


def in_words(test: dict[str, float], name: str) -> str:
    """Return an accuracy with its uncertainty."""
    return f"{test[name]:.4f} ± {test[f'{name}_plus_minus']:.4f}"


def read_summary(path: Path) -> dict[str, Any]:
    """Return what `evaluate` found out of a variant."""
    try:
        summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{path}: {error}; `dvc repro` makes it anew") from None
    return summary


def describe(row: Row) -> str:
    """Return in words where an epoch ran."""
    processor = row["processor"] or "a processor without a name"
    precision = row.get("precision", "fp32")  # the only one there was, before it was recorded
    kind = f"{row['machine']} {row.get('instructions', '')}".rstrip()
    return (
        f"{processor} ({kind}), {row['cores']} cores, {row['threads']} threads, "
        f"{precision} on {row['device']}, {row['system']}, Python {row['python']}, "
        f"NumPy {row['numpy']}, torch {row['torch']}, torchvision {row['torchvision']}"
    )


if __name__ == "__main__":
    run(main)
