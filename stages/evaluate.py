"""Evaluate the saved weights of one variant again, and sum up its seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.learning.device import set_up_device
from stages.learning.history import EpochRow
from stages.learning.inference import (
    Images,
    Score,
    load_images,
    predict,
    predict_with_batch_statistics,
    score,
)
from stages.learning.weights import load_network
from stages.reporting.summary import plus_minus, summarise, uncertainty
from stages.support.atomic import write_json
from stages.support.errors import InputError, misplaced, unusable
from stages.support.leftovers import SEED, remove_leftovers
from stages.support.params import CLASSES, Precision, load_params
from stages.support.tables import read_table, write_table

# Another machine rounds differently. Other weights differ by far more.
ACCURACY_TOLERANCE = 0.002
LOSS_TOLERANCE = 0.01  # relative
# Images in a batch whose own statistics are used: as in training by default. It is the same for all
# variants and experiments, so that they compare.
BATCH = 64


def main(
    variant: str,
    models: Path,
    histories: Path,
    subset: Path,
    summary: Path,
    uncertainties: Path,
    curves: Path,
    confusion: Path,
) -> None:
    """Evaluate the saved weights of one variant again, and sum up its seeds.

    Args:
        variant: its name in params.yaml.
        models: the folder with the weights of each seed.
        histories: the folder with the history of each seed.
        subset: the folder with both splits.
        summary: the JSON file to write, with the metrics of the variant.
        uncertainties: the JSON file to write, with how far the metrics may be off.
        curves: the table to write, with a row for each seed and epoch.
        confusion: the table to write, with a row for each seed, actual and predicted class.
    """
    params = load_params()
    if variant not in params.variants:
        raise InputError(
            f"params.yaml names no variant {variant}: there are {', '.join(params.variants)}"
        )
    remove_leftovers(models, SEED, ".safetensors", params.seeds)
    remove_leftovers(histories, SEED, ".csv", params.seeds)
    device = set_up_device(params.train.device)
    test = load_images(subset, "test", device)

    evaluated = []
    for seed in params.seeds:
        weights, history = models / f"{seed}.safetensors", histories / f"{seed}.csv"
        one = evaluate(seed, weights, history, test, device)
        evaluated.append(one)
        own, batch = (
            f"{accuracy:.4f} ± {plus_minus([accuracy], len(test.labels)):.4f}"
            for accuracy in (one.score.accuracy, one.batch_statistics)
        )
        print(
            f"{variant}, seed {seed}: test accuracy {own}, with batch statistics {batch}",
            flush=True,
        )

    histories_of_seeds = [one.history for one in evaluated]
    batch_statistics = [one.batch_statistics for one in evaluated]
    write_table(curves, [row for one in evaluated for row in curve_rows(variant, one)])
    write_table(
        confusion,
        [
            {"variant": variant, "seed": one.seed, **counted}
            for one in evaluated
            for counted in one.confusion
        ],
    )
    write_json(summary, summarise(histories_of_seeds).model_dump())
    doubt = uncertainty(histories_of_seeds, batch_statistics, len(test.labels))
    write_json(uncertainties, doubt.model_dump())


@dataclass(frozen=True)
class Evaluated:
    """What came of one seed."""

    seed: int
    history: Sequence[EpochRow]
    precision: Precision
    score: Score  # of the saved weights on the test images
    batch_statistics: float  # their test accuracy with each batch's own statistics
    confusion: list[dict[str, int]]  # a row per actual and predicted class


def evaluate(
    seed: int, weights: Path, history: Path, test: Images, device: torch.device
) -> Evaluated:
    """Evaluate the weights of one seed on the test images.

    Raises:
        InputError: a file is missing or damaged, or the two are not of one training.
    """
    rows = read_table(history, EpochRow)
    if not all(0 <= row.test_accuracy <= 1 for row in rows):
        raise unusable(history, "has a test accuracy that is not between 0 and 1")
    network = load_network(weights).to(device)
    logits = predict(network, test.images)
    scored = score(logits, test.labels)
    require_agreement(scored, rows[-1], weights, history)
    counted = count_confusion(logits, test.labels)
    logits = predict_with_batch_statistics(network, test.images, BATCH)
    batch_statistics = score(logits, test.labels).accuracy
    return Evaluated(seed, rows, network.precision, scored, batch_statistics, counted)


def require_agreement(found: Score, last: EpochRow, weights: Path, history: Path) -> None:
    """Check that the weights score as the history's last row says.

    Raises:
        InputError: they do not, so one of the two files belongs to another training.
    """
    same_loss = math.isclose(found.loss, last.test_loss, rel_tol=LOSS_TOLERANCE, abs_tol=1e-6)
    both_diverged = not math.isfinite(found.loss) and not math.isfinite(last.test_loss)
    same_accuracy = abs(found.accuracy - last.test_accuracy) <= ACCURACY_TOLERANCE
    if not same_accuracy or not (same_loss or both_diverged):
        raise misplaced(
            f"{weights} has test accuracy {found.accuracy:.4f} and loss {found.loss:.4f}, but "
            f"{history} ends with {last.test_accuracy:.4f} and {last.test_loss:.4f}: they are not "
            "of one training"
        )


def curve_rows(variant: str, one: Evaluated) -> list[dict[str, object]]:
    """Return a row of metrics/curves for each epoch of one seed, with `CurveRow`'s columns."""
    return [
        {
            "variant": variant,
            "seed": one.seed,
            **row.model_dump(),
            # The weights of the other epochs are gone.
            "test_accuracy_batch_statistics": (
                one.batch_statistics if row is one.history[-1] else math.nan
            ),
            "precision": one.precision,
        }
        for row in one.history
    ]


def count_confusion(logits: torch.Tensor, labels: torch.Tensor) -> list[dict[str, int]]:
    """Return for every pair of actual and predicted class how many images it has."""
    pairs = CLASSES * labels.cpu() + logits.argmax(dim=1)
    counts = torch.bincount(pairs, minlength=CLASSES**2).tolist()
    return [
        {"actual": pair // CLASSES, "predicted": pair % CLASSES, "count": count}
        for pair, count in enumerate(counts)
    ]
