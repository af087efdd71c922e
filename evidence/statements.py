"""The protocol's statements and predictions, as code: evidence/protocol.md has them in words."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

from evidence.paired import PLANNED, Finding
from stages.learning.history import EpochRow
from stages.reporting.summary import mean_fall

VARIANTS = ("sgd", "adam", "sigmoid", "sigmoid-nodropout")
SEEDS = range(100, 100 + PLANNED)
EPOCHS = 10
# Columns of a table: test accuracy under moving statistics of a momentum, and under frozen ones of
# so many batches, None for all.
MOVING = {"moving_0.01": 0.01, "moving_0.1": 0.1, "moving_0.5": 0.5, "moving_1": 1.0}
FROZEN = {"frozen_1": 1, "frozen_3": 3, "frozen_19": 19, "frozen_all": None}

History = Sequence[EpochRow]  # of one training: a row per epoch, with a column per statistics
Block = Mapping[str, History]  # the trainings of one seed, by variant
Curve = Sequence[float]  # a column of a history, in points: hundredths of accuracy
ABOVE, BELOW = 1, -1


def curve(history: History, column: str) -> Curve:
    """Return a column of accuracies, epoch by epoch, in points."""
    return [100 * float(getattr(row, column)) for row in history]


def diverged(history: History) -> bool:
    """Tell whether a loss, or any other number, of the training is not finite."""
    return not all(math.isfinite(x) for row in history for x in row.model_dump().values())


def late_mean(curve: Curve) -> float:
    """Return the mean over the last three epochs."""
    return mean(curve[-3:])


def settled_mean(curve: Curve) -> float:
    """Return the mean over the third epoch and all later ones."""
    return mean(curve[2:])


def mean_change(curve: Curve) -> float:
    """Return the mean absolute change from one epoch to the next, which counts learning too."""
    return mean(abs(after - before) for before, after in pairwise(curve))


def fall_once_learning(curve: Curve) -> float:
    """Return the mean fall from the first epoch above 20 points on; NaN without two such epochs.

    A training at chance, which is 10 points, cannot fall.
    """
    start = next((epoch for epoch, points in enumerate(curve) if points > 20), len(curve))
    return mean_fall(curve[start:])


@dataclass(frozen=True)
class Statement:
    """That a statistic of A is above, or below, the same statistic of B."""

    words: str
    claimed: int  # ABOVE or BELOW
    statistic: Callable[[Curve], float]
    a: tuple[str, str]  # a variant, and a column of its table
    b: tuple[str, str]
    unit: str = "points"
    primary: bool = True

    def difference(self, block: Block) -> float:
        """Return the statistic of A less that of B; NaN if a training diverged."""
        if any(diverged(block[name]) for name, _ in (self.a, self.b)):
            return math.nan
        of_a, of_b = (
            self.statistic(curve(block[name], column)) for name, column in (self.a, self.b)
        )
        return of_a - of_b


TEST, ALL = "test_accuracy", "frozen_all"
PER_EPOCH = "points per epoch"
# fmt: off
STATEMENTS: Mapping[str, Statement] = {
    "1": Statement(
        "Adam's test accuracy, mean over the ten epochs, is above SGD's",
        ABOVE, mean, ("adam", TEST), ("sgd", TEST)),
    "2": Statement(
        "Adam falls back less than SGD",
        BELOW, mean_fall, ("adam", TEST), ("sgd", TEST), PER_EPOCH),
    "3": Statement(
        "Sigmoid's test accuracy, mean over the last three epochs, is below ReLU's",
        BELOW, late_mean, ("sigmoid", TEST), ("adam", TEST)),
    "4": Statement(
        "Sigmoid falls back less without dropout",
        BELOW, mean_fall, ("sigmoid-nodropout", TEST), ("sigmoid", TEST), PER_EPOCH),
    "5": Statement(
        "Sigmoid's accuracy is higher with frozen 19 than with moving 0.1",
        ABOVE, settled_mean, ("sigmoid", "frozen_19"), ("sigmoid", "moving_0.1")),
    "1 frozen": Statement(
        "Statement 1 with frozen statistics of all 94 batches",
        ABOVE, mean, ("adam", ALL), ("sgd", ALL), primary=False),
    "2 frozen": Statement(
        "Statement 2 with frozen statistics of all 94 batches",
        BELOW, mean_fall, ("adam", ALL), ("sgd", ALL), PER_EPOCH, primary=False),
    "2 change": Statement(
        "Adam's mean absolute change from one epoch to the next is below SGD's",
        BELOW, mean_change, ("adam", TEST), ("sgd", TEST), PER_EPOCH, primary=False),
    "4 learning": Statement(
        "Statement 4, from the first epoch above 20 points on",
        BELOW, fall_once_learning, ("sigmoid-nodropout", TEST), ("sigmoid", TEST), PER_EPOCH,
        primary=False),
    "4 change": Statement(
        "Sigmoid's mean absolute change from one epoch to the next is smaller without dropout",
        BELOW, mean_change, ("sigmoid-nodropout", TEST), ("sigmoid", TEST), PER_EPOCH,
        primary=False),
}
# fmt: on

# The settled mean of each column of one training. A condition is met where its number is positive.
Settled = Mapping[str, float]
Conditions = Mapping[str, Callable[[Settled], float]]


def gap(a: Settled) -> float:
    """Return how far accuracy in training mode is above that with moving statistics of 0.1."""
    return a["seen_accuracy"] - a["moving_0.1"]


def alike(a: Settled, one: str, other: str) -> float:
    """Return by how much two columns differ less than a quarter of the gap."""
    return gap(a) / 4 - abs(a[one] - a[other])


FROZEN_BEATS_MOVING: Conditions = {
    "frozen 19 is above moving 0.1": lambda a: a["frozen_19"] - a["moving_0.1"],
    "frozen 3 is above moving 0.5": lambda a: a["frozen_3"] - a["moving_0.5"],
}
THERE_IS_A_GAP: Conditions = {"training mode is above moving 0.1": gap}
PREDICTIONS: Mapping[str, Conditions] = {
    "lag": {
        **FROZEN_BEATS_MOVING,
        "moving 1 is above moving 0.5": lambda a: a["moving_1"] - a["moving_0.5"],
        "moving 0.5 is above moving 0.1": lambda a: a["moving_0.5"] - a["moving_0.1"],
        "moving 0.1 is above moving 0.01": lambda a: a["moving_0.1"] - a["moving_0.01"],
    },
    "noise": {
        **THERE_IS_A_GAP,
        "frozen 1 is as bad as moving 1": lambda a: alike(a, "frozen_1", "moving_1"),
        "frozen 19 is as bad as moving 0.1": lambda a: alike(a, "frozen_19", "moving_0.1"),
        "moving 0.5 is above moving 1": lambda a: a["moving_0.5"] - a["moving_1"],
        "moving 0.1 is above moving 0.5": lambda a: a["moving_0.1"] - a["moving_0.5"],
        "moving 0.01 is above moving 0.1": lambda a: a["moving_0.01"] - a["moving_0.1"],
    },
    "both": {
        **FROZEN_BEATS_MOVING,
        "a middle momentum is best": lambda a: (
            max(a["moving_0.5"], a["moving_0.1"]) - max(a["moving_1"], a["moving_0.01"])
        ),
    },
    "neither": {
        **THERE_IS_A_GAP,
        "all frozen batches recover less than a quarter of the gap": lambda a: (
            gap(a) / 4 - (a["frozen_all"] - a["moving_0.1"])
        ),
    },
}


@dataclass(frozen=True)
class Prediction:
    """What became of a prediction, and of each of its conditions."""

    outcome: str  # "holds", "fails", "open" or "short of the protocol"
    conditions: Mapping[str, Finding]


SETTLED = ("seen_accuracy", *MOVING, *FROZEN)  # the columns that the predictions speak of


def settled(history: History) -> Settled:
    """Return the settled mean of each column of SETTLED; NaN if the training diverged."""
    if diverged(history):
        return dict.fromkeys(SETTLED, math.nan)
    return {column: settled_mean(curve(history, column)) for column in SETTLED}
