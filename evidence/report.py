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

OF_STATEMENTS = "verdict", "mean of A less B", "99 % interval", "seeds on the claimed side", "p"
OF_FIRST_CONDITION = "mean of frozen 19 less moving 0.1", "99 % interval", "frozen 19 is above"
BY_EPOCH = {
    "test": "test_accuracy",
    "training mode": "seen_accuracy",
    "gradient norm, conv1": "gradient_conv1",
    "gradient norm, conv7": "gradient_conv7",
}


def of_statements(findings: Mapping[str, Finding], seeds: Sequence[int]) -> str:
    """Return a table of the five statements, and one of the secondary ones.

    A seed is on the claimed side if its difference is where the statement says. A tie counts half.
    """
    rows = {
        name: (name, STATEMENTS[name].words, *_statement(name, finding, seeds))
        for name, finding in findings.items()
    }
    five = [row for name, row in rows.items() if STATEMENTS[name].primary]
    secondary = [row for name, row in rows.items() if not STATEMENTS[name].primary]
    head = "statement", *OF_STATEMENTS
    return f"{_table(('', *head), five)}\n{_table(('secondary', *head), secondary)}"


def _statement(name: str, finding: Finding, seeds: Sequence[int]) -> list[str]:
    statement = STATEMENTS[name]
    finite = len(seeds) - finding.differences.count(None)
    above = finite * (finding.share_above or 0)
    return [
        _verdict(finding, seeds),
        *_mean_and_interval(finding, statement.unit),
        f"{above if statement.claimed == ABOVE else finite - above:g} of {finite}",
        "" if finding.p is None else f"{finding.p:.4f}",
    ]


def _verdict(finding: Finding, seeds: Sequence[int]) -> str:
    remarks = [
        f"no difference: seed {seed}"
        for seed, difference in zip(seeds, finding.differences, strict=True)
        if difference is None
    ]
    if finding.interval_agrees is False:
        remarks.append("the interval disagrees")
    return "; ".join([finding.verdict, *remarks])


def of_predictions(
    predictions: Mapping[str, Mapping[str, Prediction]], seeds: Sequence[int]
) -> str:
    """Return a table of what became of each prediction, by variant, and of its first condition."""
    rows = []
    for variant, predicted in predictions.items():
        first = predicted["lag"].conditions["frozen 19 is above moving 0.1"]
        outcomes = [prediction.outcome for prediction in predicted.values()]
        of_first = *_mean_and_interval(first, "points"), _verdict(first, seeds)
        rows.append((variant, *outcomes, *of_first))
    return _table(("variant", *PREDICTIONS, *OF_FIRST_CONDITION), rows)


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

    Accuracies are in points. In training mode, the accuracy is that of the training images as they
    went by. A gradient is the norm of that of a layer's weight: of the first convolution, and of
    one before the last. A training that diverged is left out.
    """
    rows: list[Sequence[str]] = []
    for variant in VARIANTS:
        histories = [block[variant] for block in blocks if not diverged(block[variant])]
        epochs = [*zip(*histories, strict=True)]
        for number, (words, column) in enumerate(BY_EPOCH.items()):
            medians = (median(float(getattr(row, column)) for row in of) for of in epochs)
            accuracy = column.endswith("accuracy")
            cells = (f"{100 * x:.1f}" if accuracy else f"{x:.2g}" for x in medians)
            rows.append(("" if number else variant, words, *cells))
    return _table(("variant", "epoch:", *map(str, range(1, EPOCHS + 1))), rows)


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
