"""The verdicts of the protocol, once all blocks are there.

`python -m evidence.verdicts` reads evidence/tables, writes evidence/verdicts.json and two figures,
and prints the tables of docs/evidence.md. If the work has to end before, `--short` does so with
intervals and no verdicts.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from evidence import drawings, report
from evidence.paired import Finding, judge
from evidence.record import REMEDY, TABLES, Record, read
from evidence.statements import (
    ABOVE,
    EPOCHS,
    PREDICTIONS,
    SEEDS,
    STATEMENTS,
    VARIANTS,
    Block,
    History,
    Prediction,
    settled,
)
from stages.support.atomic import replacing, write_json
from stages.support.errors import InputError, errors_as_messages
from stages.support.params import Variant

OF_ONE_TRAINING = {"variant", "seed", *Variant.model_fields}  # keys of `Record.training`


def main(tables: Path = TABLES, results: Path = Path("evidence"), short: bool = False) -> None:
    """Write the verdicts and the figures, and print the tables.

    Raises:
        InputError: a block is missing, or the tables do not belong together.
    """
    blocks = read_blocks(tables)
    if len(blocks) < (1 if short else len(SEEDS)):
        raise InputError(
            f"{len(blocks)} of {len(SEEDS)} blocks, no verdicts: `make evidence` trains the others"
        )
    findings = judge_statements(blocks)
    predictions = {
        variant: judge_predictions([block[variant] for block in blocks.values()])
        for variant in VARIANTS
    }
    verdicts = {
        "seeds": [*blocks],
        "statements": {
            name: {
                "words": STATEMENTS[name].words,
                "unit": STATEMENTS[name].unit,
                **asdict(finding),
            }
            for name, finding in findings.items()
        },
        "predictions": {
            variant: {name: asdict(prediction) for name, prediction in predicted.items()}
            for variant, predicted in predictions.items()
        },
    }
    write_json(results / "verdicts.json", verdicts)
    figures = {
        "statements": drawings.statements(findings),
        "statistics": drawings.statistics([*blocks.values()]),
    }
    for name, figure in figures.items():
        with replacing(results / f"figures/{name}.png") as temporary:
            figure.savefig(temporary, dpi=100)
    print(report.of_statements(findings, [*blocks]))
    print(report.of_predictions(predictions, [*blocks]))
    print(report.of_accuracies([*blocks.values()]))
    print(report.by_epoch([*blocks.values()]), end="")


def read_blocks(tables: Path) -> dict[int, Block]:
    """Return the whole blocks by seed: those with a table for each variant.

    Raises:
        InputError: a block is of several codes or machines, blocks are of several settings, or a
            table is damaged or short.
    """
    blocks: dict[int, Block] = {}
    everything: list[Record] = []
    for seed in SEEDS:
        found = {variant: read(tables / f"{variant}-{seed}.csv") for variant in VARIANTS}
        whole = {variant: each for variant, each in found.items() if each}
        if len(whole) < len(VARIANTS):
            continue
        blocks[seed] = {variant: history for variant, (_, history) in whole.items()}
        records = [record for record, _ in whole.values()]
        require_one(f"stages/learning for seed {seed}", [record.learning for record in records])
        require_one(f"machine for seed {seed}", [record.ran_on for record in records])
        everything += records
        for variant, history in blocks[seed].items():
            if [row.epoch for row in history] != [*range(1, EPOCHS + 1)]:
                raise InputError(f"{tables}/{variant}-{seed}.csv has not {EPOCHS} epochs; {REMEDY}")
    require_one("subset", [record.images for record in everything])
    require_one("setting", [common_setting(record.training) for record in everything])
    return blocks


def require_one(what: str, values: Iterable[object]) -> None:
    """Raise an InputError if the values differ."""
    if len(different := {str(value) for value in values}) > 1:
        raise InputError(
            f"the tables name more than one {what}: {', '.join(sorted(different))}; keep those of "
            "this checkout and machine, remove the others, and `make evidence` trains them again"
        )


def common_setting(training: Mapping[str, object]) -> dict[str, object]:
    """Return what the trainings of all variants and seeds share."""
    return {key: value for key, value in training.items() if key not in OF_ONE_TRAINING}


def judge_statements(blocks: Mapping[int, Block]) -> dict[str, Finding]:
    """Return what the blocks, by seed, say of each statement."""
    return {
        name: judge([statement.difference(block) for block in blocks.values()], statement.claimed)
        for name, statement in STATEMENTS.items()
    }


def judge_predictions(histories: Sequence[History]) -> dict[str, Prediction]:
    """Return what became of each prediction for the histories of one variant."""
    accuracies = [settled(history) for history in histories]
    result = {}
    for name, conditions in PREDICTIONS.items():
        findings = {
            words: judge([number(of_seed) for of_seed in accuracies], ABOVE)
            for words, number in conditions.items()
        }
        result[name] = Prediction(outcome([*findings.values()]), findings)
    return result


def outcome(findings: Sequence[Finding]) -> str:
    """Return what the findings about its conditions say of a prediction."""
    verdicts = {finding.verdict for finding in findings}
    if "short of the protocol" in verdicts:
        return "short of the protocol"
    if "contradicted" in verdicts:
        return "fails"
    return "holds" if verdicts == {"supported"} else "open"


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m evidence.verdicts", description=__doc__)
    parser.add_argument("--short", action="store_true", help="intervals, and no verdicts")
    options = parser.parse_args()
    with errors_as_messages():
        main(short=options.short)
