"""One variant in a few numbers, and how far they may be off."""

import math
import statistics
from collections.abc import Sequence
from itertools import pairwise

from pydantic import BaseModel, ConfigDict
from scipy.stats import binomtest

from stages.learning.history import EpochRow


class Summary(BaseModel):
    """The metrics of a variant, as `dvc metrics` shows them: each is a mean over the seeds."""

    model_config = ConfigDict(frozen=True)

    accuracy: float  # on the test images, after the last epoch
    loss: float | None  # likewise; None if it is not finite
    best: float  # the highest test accuracy of all epochs
    best_epoch: int | float  # the first epoch with it
    falls: float | None  # `mean_fall` of the test accuracy; None for one epoch
    train: float  # accuracy on the training images after the last epoch, in evaluation mode


class Uncertainty(BaseModel):
    """What it takes to read a summary well, and would make a table of metrics too wide."""

    model_config = ConfigDict(frozen=True)

    accuracy_plus_minus: float  # of the summary's accuracy, as `plus_minus` says
    best_plus_minus: float
    # Test accuracy of the saved weights when BatchNorm uses each batch's own statistics.
    batch_statistics: float
    batch_statistics_plus_minus: float
    epochs: int
    seeds: int


def summarise(histories: Sequence[Sequence[EpochRow]]) -> Summary:
    """Return the summary of a variant from its histories: for each seed, a row per epoch."""
    last = [history[-1] for history in histories]
    curves = _test_accuracies(histories)
    return Summary(
        accuracy=statistics.mean(curve[-1] for curve in curves),
        loss=_finite(statistics.mean(row.test_loss for row in last)),
        best=statistics.mean(max(curve) for curve in curves),
        best_epoch=statistics.mean(1 + curve.index(max(curve)) for curve in curves),
        falls=_finite(statistics.mean(mean_fall(curve) for curve in curves)),
        train=statistics.mean(row.train_accuracy for row in last),
    )


def uncertainty(
    histories: Sequence[Sequence[EpochRow]], batch_statistics: Sequence[float], images: int
) -> Uncertainty:
    """Return the uncertainty of a variant's summary.

    Args:
        histories: for each seed, a row per epoch.
        batch_statistics: for each seed, the test accuracy of the saved weights when BatchNorm uses
            each batch's own statistics.
        images: how many test images there are.
    """
    curves = _test_accuracies(histories)
    return Uncertainty(
        accuracy_plus_minus=plus_minus([curve[-1] for curve in curves], images),
        best_plus_minus=plus_minus([max(curve) for curve in curves], images),
        batch_statistics=statistics.mean(batch_statistics),
        batch_statistics_plus_minus=plus_minus(batch_statistics, images),
        epochs=len(curves[0]),
        seeds=len(curves),
    )


def mean_fall(curve: Sequence[float]) -> float:
    """Return how far a curve falls from one epoch to the next, on average; NaN for one epoch.

    A rise counts as no fall. The mean absolute change would count learning itself.
    """
    falls = [max(0.0, before - after) for before, after in pairwise(curve)]
    return statistics.mean(falls) if falls else math.nan


def plus_minus(accuracies: Sequence[float], images: int) -> float:
    """Return how far an accuracy may be off: that of one seed, or the mean of several.

    Args:
        accuracies: for each seed.
        images: how many each is of.

    Returns:
        Of one seed, half the width of its 95 % binomial interval (Wilson's), on its longer side:
        what other images would change. Of several, their standard deviation (n - 1): what another
        seed would change.
    """
    if len(accuracies) > 1:
        return statistics.stdev(accuracies)
    hits = round(accuracies[0] * images)
    interval = binomtest(hits, images).proportion_ci(method="wilson")
    return float(max(interval.high - hits / images, hits / images - interval.low))


def _test_accuracies(histories: Sequence[Sequence[EpochRow]]) -> list[list[float]]:
    return [[row.test_accuracy for row in history] for history in histories]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
