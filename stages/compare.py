"""Compare the variants: figures, and all curves in one table."""

from pathlib import Path

import numpy as np

from stages.lib import figures
from stages.lib.command import InputError, run
from stages.lib.files import replacing_folder, write_csv
from stages.lib.params import CLASSES, load_params
from stages.lib.results import read_rows, require_exactly
from stages.lib.subset import load_split

DPI = 100  # 900 pixels wide, as README shows them
COLUMNS = ("seed", "epoch", "train_accuracy", "test_accuracy")
CONFUSION_COLUMNS = ("actual", "predicted", "count")


def main(
    summaries: Path,
    curves: Path,
    confusion: Path,
    subset: Path,
    all_curves: Path,
    figure_folder: Path,
) -> None:
    """Compare the variants: figures, and all curves in one table."""
    params = load_params()
    remedy = (
        f"remove its files under {summaries}, {curves} and {confusion} by hand, "
        "`dvc checkout` removes its models and histories, then `dvc repro`"
    )
    for folder, suffix in ((summaries, ".json"), (curves, ".csv"), (confusion, ".csv")):
        require_exactly(folder, [f"{variant}{suffix}" for variant in params.variants], remedy)
    rows = {variant: read_rows(curves / f"{variant}.csv", COLUMNS) for variant in params.variants}
    for variant, table in rows.items():
        if {row["seed"] for row in table} != set(params.seeds):
            raise InputError(f"{curves / variant}.csv: other seeds than params.yaml; `dvc repro`")

    counts = {}
    for variant in params.variants:
        matrix = np.zeros((CLASSES, CLASSES), np.int64)
        for row in read_rows(confusion / f"{variant}.csv", CONFUSION_COLUMNS):
            matrix[int(row["actual"]), int(row["predicted"])] += int(row["count"])
        counts[variant] = matrix[list(params.data.classes)]

    drawings = {
        "accuracy": figures.accuracy_by_variant(rows),
        "test_accuracy": figures.test_accuracies(rows),
        "gradients": figures.gradient_norms(rows),
        "confusion": figures.confusion(counts, params.data.classes),
        "digits": figures.sample_digits(load_split(subset, "train")),
    }
    with replacing_folder(figure_folder) as folder:
        for name, figure in drawings.items():
            figure.savefig(folder / f"{name}.png", dpi=DPI)
    write_csv(all_curves, [row for table in rows.values() for row in table])


if __name__ == "__main__":
    run(main)
