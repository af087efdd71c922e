"""Compare the variants: figures, all curves in one table, and the notebook's conclusions."""

from pathlib import Path

import numpy as np

from stages.lib import figures
from stages.lib.claims import CLAIMS, examine
from stages.lib.command import InputError, run
from stages.lib.files import Row, replacing_folder, write_csv
from stages.lib.params import CLASSES, load_params
from stages.lib.results import read_rows, require_exactly, write_json
from stages.lib.subset import load_split

DPI = 100  # 900 pixels wide, as README shows them
COLUMNS = [
    *("seed", "epoch", "train_accuracy", "seen_accuracy", "test_accuracy", "test_loss"),
    "test_accuracy_batch_statistics",
    *(f"gradient_conv{layer}" for layer in range(1, 9)),
    *(f"gradient_linear{layer}" for layer in range(1, 4)),
]
CONFUSION_COLUMNS = ("actual", "predicted", "count")


def main(
    summaries: Path,
    curves: Path,
    confusion: Path,
    subset: Path,
    all_curves: Path,
    claims_file: Path,
    figure_folder: Path,
) -> None:
    """Compare the variants: figures, all curves in one table, and the notebook's conclusions."""
    params = load_params()
    remedy = (
        f"remove its files under {summaries}, {curves} and {confusion} by hand, "
        "`dvc checkout` removes its models and histories, then `dvc repro`"
    )
    for folder, suffix in ((summaries, ".json"), (curves, ".csv"), (confusion, ".csv")):
        require_exactly(folder, [f"{variant}{suffix}" for variant in params.variants], remedy)
    rows = {variant: read_rows(curves / f"{variant}.csv", COLUMNS) for variant in params.variants}
    epochs = range(1, 1 + max(int(row["epoch"]) for row in next(iter(rows.values()))))
    expected = [(seed, epoch) for seed in params.seeds for epoch in epochs]
    for variant, table in rows.items():
        if [(row["seed"], row["epoch"]) for row in table] != expected:
            raise InputError(
                f"{curves / variant}.csv: other seeds than params.yaml, or other epochs than the "
                f"{len(epochs)} of the first variant; `dvc repro` makes it anew"
            )

    require_one_precision(curves, [row for table in rows.values() for row in table])

    counts = {}
    for variant in params.variants:
        matrix = np.zeros((CLASSES, CLASSES), np.int64)
        for row in read_rows(confusion / f"{variant}.csv", CONFUSION_COLUMNS):
            matrix[int(row["actual"]), int(row["predicted"])] += int(row["count"])
        counts[variant] = matrix[list(params.data.classes)]

    findings = {name: examine(claim, rows) for name, claim in CLAIMS.items()}
    for found in findings.values():
        print(f"{found.claim.statement}: {found}", flush=True)

    drawings = {
        "claims": figures.claims(list(findings.values())),
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
    write_json(claims_file, {name: found.as_json() for name, found in findings.items()})
    write_csv(all_curves, [row for table in rows.values() for row in table])


def require_one_precision(curves: Path, rows: list[Row]) -> None:
    """Check that all trainings computed in the same precision, so that their variants compare.

    Raises:
        InputError: they did not, since machines differ in what `train.precision: auto` is.
    """
    first: dict[object, str] = {}
    for row in rows:
        first.setdefault(row.get("precision"), f"{row['variant']} with seed {row['seed']}")
    if len(first) > 1:
        found = ", ".join(f"{training} in {precision}" for precision, training in first.items())
        raise InputError(
            f"{curves}: {found}: machines differ in what train.precision: auto is; name one in "
            "params.yaml, then `dvc repro`"
        )


if __name__ == "__main__":
    run(main)
