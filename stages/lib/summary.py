"""One variant in a few numbers."""

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

from stages.lib.files import Row

Summary = dict[str, dict[str, float | None] | float | None]


def summarise(histories: Sequence[Sequence[Row]], batch_statistics: Sequence[float]) -> Summary:
    """Return the summary of one variant; every number is a mean over its seeds.

    Args:
        histories: for each seed, a row per epoch, as `stages.lib.training.train` yields them.
        batch_statistics: for each seed, the test accuracy with batch statistics.

    Returns:
        train, test: accuracy and loss after the last epoch.
        test.accuracy_std: standard deviation of the test accuracy over the seeds (n - 1); None
            for one seed.
        test.best_accuracy, test.best_epoch: the highest test accuracy, and its first epoch.
        test.accuracy_batch_statistics: as given.
        oscillation: mean absolute change of the test accuracy from one epoch to the next; None
            for one epoch.
        seeds: their number.

        A loss that is not finite is None.
    """
    last = [history[-1] for history in histories]
    test = [_column(history, "test_accuracy") for history in histories]
    return {
        "test": {
            "accuracy": _mean(_column(last, "test_accuracy")),
            "accuracy_std": statistics.stdev(_column(last, "test_accuracy")) if last[1:] else None,
            "best_accuracy": _mean([max(curve) for curve in test]),
            "best_epoch": _mean([1 + curve.index(max(curve)) for curve in test]),
            "accuracy_batch_statistics": _mean(batch_statistics),
            "loss": _mean(_column(last, "test_loss")),
        },
        "train": {
            "accuracy": _mean(_column(last, "train_accuracy")),
            "loss": _mean(_column(last, "train_loss")),
        },
        "oscillation": _mean([abs(b - a) for curve in test for a, b in pairwise(curve)]),
        "seeds": len(histories),
    }


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def _mean(values: Sequence[float]) -> float | None:
    if not values or not all(map(math.isfinite, values)):
        return None
    return statistics.mean(values)  # of whole numbers, a whole number where it is one
