"""Compare the variants: figures, all curves in one table, a line for each."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stages.learning.split import load_split
from stages.reporting import figures
from stages.reporting.summary import Summary, Uncertainty
from stages.reporting.tables import ConfusionRow, CurveRow
from stages.support.atomic import replacing_folder
from stages.support.errors import InputError, unusable
from stages.support.git import outdated
from stages.support.leftovers import VARIANT, remove_leftovers
from stages.support.params import CLASSES, load_params
from stages.support.tables import read_record, read_table, write_table

DPI = 100  # 900 pixels wide, as README shows them


def main(
    summaries: Path,
    uncertainties: Path,
    curves: Path,
    confusion: Path,
    subset: Path,
    all_curves: Path,
    figure_folder: Path,
) -> None:
    """Compare the variants: figures, all curves in one table, a line for each.

    Args:
        summaries: the folder with the metrics of each variant.
        uncertainties: the folder with how far each variant's metrics may be off.
        curves: the folder with a table of epochs for each variant.
        confusion: the folder with a confusion table for each variant.
        subset: the folder with both splits.
        all_curves: the table to write, with the curves of all variants.
        figure_folder: the folder to write, with a PNG for each figure.
    """
    params = load_params()
    suffixes = {summaries: ".json", uncertainties: ".json", curves: ".csv", confusion: ".csv"}
    for folder, suffix in suffixes.items():
        remove_leftovers(folder, VARIANT, suffix, params.variants)

    rows = {name: read_table(curves / f"{name}.csv", CurveRow) for name in params.variants}
    require_the_same_epochs(curves, rows, params.seeds)
    require_one_precision(curves, [row for table in rows.values() for row in table])
    counts = {}
    for variant in params.variants:
        matrix = np.zeros((CLASSES, CLASSES), np.int64)
        for pair in read_table(confusion / f"{variant}.csv", ConfusionRow):
            matrix[pair.actual, pair.predicted] += pair.count
        counts[variant] = matrix[list(params.data.classes)]

    drawings = {
        "modes": figures.modes(rows),
        "accuracy": figures.accuracy_by_variant(rows),
        "test_accuracy": figures.test_accuracies(rows),
        "gradients": figures.gradient_norms(rows),
        "confusion": figures.confusion(counts, params.data.classes),
        "digits": figures.sample_digits(load_split(subset, "train")),
    }
    with replacing_folder(figure_folder) as folder:
        for name, figure in drawings.items():
            figure.savefig(folder / f"{name}.png", dpi=DPI)
    write_table(
        all_curves,
        [
            {"variant": row.variant, "seed": row.seed, **row.model_dump()}
            for table in rows.values()
            for row in table
        ],
    )
    for name in params.variants:
        summary = read_record(summaries / f"{name}.json", Summary)
        doubt = read_record(uncertainties / f"{name}.json", Uncertainty)
        print(
            f"{name}: test accuracy {summary.accuracy:.4f} ± {doubt.accuracy_plus_minus:.4f}, "
            f"best {summary.best:.4f} ± {doubt.best_plus_minus:.4f} "
            f"in epoch {round(summary.best_epoch, 1):g}",
            flush=True,
        )
    if old := outdated(params.variants, summaries):
        print(f"`make variants` renews the experiments {', '.join(old)}: their numbers are older")


def require_the_same_epochs(
    curves: Path, rows: Mapping[str, Sequence[CurveRow]], seeds: Sequence[int]
) -> None:
    """Check that each variant has all seeds, and each seed as many epochs as the first variant.

    Raises:
        InputError: a table is of another run.
    """
    epochs = range(1, 1 + max(row.epoch for row in next(iter(rows.values()))))
    expected = [(seed, epoch) for seed in seeds for epoch in epochs]
    for variant, table in rows.items():
        if [(row.seed, row.epoch) for row in table] != expected:
            raise unusable(
                curves / f"{variant}.csv",
                "other seeds than params.yaml, or other epochs than the "
                f"{len(epochs)} of the first variant",
            )


def require_one_precision(curves: Path, rows: Sequence[CurveRow]) -> None:
    """Check that all trainings computed in the same precision, so that their variants compare.

    Raises:
        InputError: they did not, since machines differ in what `train.precision: auto` means.
    """
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.precision, f"{row.variant} with seed {row.seed}")
    if len(first) > 1:
        found = ", ".join(f"{training} in {precision}" for precision, training in first.items())
        raise InputError(
            f"{curves}: {found}: machines differ in what train.precision: auto means; name one in "
            "params.yaml, then `dvc repro`"
        )
