"""One variant in a few numbers."""

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

from scipy.stats import binomtest

from stages.lib.files import Row

Summary = dict[str, dict[str, float | None] | float | None]


def summarise(
    histories: Sequence[Sequence[Row]], batch_statistics: Sequence[float], images: int
) -> Summary:
    """Return the summary of one variant; every number is a mean over its seeds.

    Args:
        histories: for each seed, a row per epoch, as `stages.lib.training.train` yields them.
        batch_statistics: for each seed, the test accuracy with batch statistics.
        images: how many the test accuracies are of.

    Returns:
        train, test: accuracy and loss after the last epoch.
        test.best_accuracy, test.best_epoch: the highest test accuracy, and its first epoch.
        test.accuracy_batch_statistics: as given.
        test.*_plus_minus: the uncertainty of a test accuracy, as `plus_minus` has it.
        oscillation: mean absolute change of the test accuracy from one epoch to the next; None
            for one epoch.
        epochs, seeds: their numbers.

        A loss that is not finite is None.
    """
    last = [history[-1] for history in histories]
    test = [_column(history, "test_accuracy") for history in histories]
    final, best = [curve[-1] for curve in test], [max(curve) for curve in test]
    return {
        "test": {
            "accuracy": _mean(final),
            "accuracy_plus_minus": plus_minus(final, images),
            "best_accuracy": _mean(best),
            "best_accuracy_plus_minus": plus_minus(best, images),
            "best_epoch": _mean([1 + curve.index(max(curve)) for curve in test]),
            "accuracy_batch_statistics": _mean(batch_statistics),
            "accuracy_batch_statistics_plus_minus": plus_minus(batch_statistics, images),
            "loss": _mean(_column(last, "test_loss")),
        },
        "train": {
            "accuracy": _mean(_column(last, "train_accuracy")),
            "loss": _mean(_column(last, "train_loss")),
        },
        "oscillation": _mean([oscillation(curve) for curve in test]),
        "epochs": len(test[0]),
        "seeds": len(histories),
    }


def oscillation(curve: Sequence[float]) -> float:
    """Return the mean absolute change from one epoch to the next; NaN for one epoch."""
    changes = [abs(after - before) for before, after in pairwise(curve)]
    return statistics.mean(changes) if changes else math.nan


def plus_minus(accuracies: Sequence[float], images: int) -> float:
    """Return how far an accuracy may be off: that of one seed, or the mean of several.

    Args:
        accuracies: for each seed.
        images: how many each is of.

    Returns:
        Of one seed, the distance to the farther end of its 95 % binomial interval (Wilson's): what
        other images would change. Of several, their standard deviation (n - 1): what another seed
        would change.
    """
    if len(accuracies) > 1:
        return statistics.stdev(accuracies)
    hits = round(accuracies[0] * images)
    interval = binomtest(hits, images).proportion_ci(method="wilson")
    return float(max(interval.high - hits / images, hits / images - interval.low))


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def _mean(values: Sequence[float]) -> float | None:
    if not values or not all(map(math.isfinite, values)):
        return None
    return statistics.mean(values)  # of whole numbers, a whole number where it is one
