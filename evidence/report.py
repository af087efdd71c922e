"""What the blocks say, as the tables of docs/evidence.md."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, median

from evidence.paired import Finding
from evidence.statements import (
    ABOVE,
    EPOCHS,
    FROZEN,
    MOVING,
    PREDICTIONS,
    STATEMENTS,
    VARIANTS,
    Block,
    Prediction,
    diverged,
    settled,
)
from stages.learning.history import EpochRow

OF_STATEMENTS = (
    "",
    "statement",
    "verdict",
    "mean difference",
    "99 % interval",
    "seeds on this side",
    "p",
)


def of_statements(findings: Mapping[str, Finding], seeds: Sequence[int]) -> str:
    """Return a table of the five statements, and one of the secondary ones.

    A seed is on this side if its difference is where the statement says. A tie counts half.
    """
    rows = {
        name: (name, STATEMENTS[name].words, *_statement(name, finding, seeds))
        for name, finding in findings.items()
    }
    five = [row for name, row in rows.items() if STATEMENTS[name].primary]
    secondary = [row for name, row in rows.items() if not STATEMENTS[name].primary]
    return f"{_table(OF_STATEMENTS, five)}\n{_table(OF_STATEMENTS, secondary)}"


def _statement(name: str, finding: Finding, seeds: Sequence[int]) -> list[str]:
    statement = STATEMENTS[name]
    remarks = [
        f"diverged: seed {seed}"
        for seed, difference in zip(seeds, finding.differences, strict=True)
        if difference is None
    ]
    if finding.interval_agrees is False:
        remarks.append("the interval disagrees")
    finite = len(seeds) - finding.differences.count(None)
    above = finite * (finding.share_above or 0)
    return [
        "; ".join([finding.verdict, *remarks]),
        *_mean_and_interval(finding, statement.unit),
        f"{above if statement.claimed == ABOVE else finite - above:g} of {finite}",
        "" if finding.p is None else f"{finding.p:.4f}",
    ]


def of_predictions(predictions: Mapping[str, Mapping[str, Prediction]]) -> str:
    """Return a table of what became of each prediction, by variant, and of its first condition."""
    rows = []
    for variant, predicted in predictions.items():
        first = predicted["lag"].conditions["frozen 19 is above moving 0.1"]
        outcomes = [prediction.outcome for prediction in predicted.values()]
        rows.append((variant, *outcomes, *_mean_and_interval(first, "points")))
    return _table(("variant", *PREDICTIONS, "frozen 19 less moving 0.1", "99 % interval"), rows)


def of_accuracies(blocks: Sequence[Block]) -> str:
    """Return a table of settled accuracies in points, means over the seeds, by variant."""
    columns = "seen_accuracy", *reversed(MOVING), *FROZEN
    rows = []
    for variant in VARIANTS:
        accuracies = [settled(block[variant]) for block in blocks]
        means = [mean(of_seed[column] for of_seed in accuracies) for column in columns]
        rows.append((variant, *(f"{points:.1f}" for points in means)))
    names = [column.replace("_", " ") for column in columns[1:]]
    return _table(("variant", "training mode", *names), rows)


def by_epoch(blocks: Sequence[Block]) -> str:
    """Return a table of what each epoch looked like, medians over the seeds, by variant.

    Accuracies are in points. Training mode is that of the training images as they went by, and
    conv1 is the norm of the gradient of the first layer's weight. A training that diverged is left
    out.
    """
    rows = []
    for variant in VARIANTS:
        histories = [block[variant] for block in blocks if not diverged(block[variant])]
        epochs = [*zip(*histories, strict=True)]
        rows += [
            (variant, "test", *(f"{100 * _median(of, 'test_accuracy'):.1f}" for of in epochs)),
            ("", "training mode", *(f"{100 * _median(of, 'seen_accuracy'):.1f}" for of in epochs)),
            ("", "conv1", *(f"{_median(of, 'gradient_conv1'):.1g}" for of in epochs)),
        ]
    return _table(("variant", "epoch", *map(str, range(1, EPOCHS + 1))), rows)


def _median(rows: Iterable[EpochRow], column: str) -> float:
    return median(float(getattr(row, column)) for row in rows)


def _mean_and_interval(finding: Finding, unit: str) -> tuple[str, str]:
    return (
        "" if finding.mean is None else f"{finding.mean:.2f} {unit}",
        "" if finding.interval is None else "{:.2f} to {:.2f}".format(*finding.interval),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = f"|{'---|' * len(head)}"
    return "\n".join([_row(head), rule, *map(_row, rows), ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
