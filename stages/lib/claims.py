"""The notebook's conclusions as statements that numbers can contradict, and what they say."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import numpy as np
import numpy.typing as npt
from scipy.stats import t

from stages.lib.files import Row
from stages.lib.summary import oscillation

TARGET = 0.95  # test accuracy
CONFIDENCE = 0.95  # of the intervals
POWER = 0.8  # how often the seeds that are said to be needed would decide
MOST_SEEDS = 1000  # that are counted; a difference that needs more is as good as none
ROUNDING = 1e-12  # what is smaller is no difference
SMALLEST = float(np.finfo(np.float32).tiny)  # what is smaller counts as zero in training

History = Sequence[Row]  # of one seed: an epoch a row, as in metrics/curves


@dataclass(frozen=True)
class Statistic:
    """A number that a training of one seed has."""

    words: str
    of: Callable[[History], float]  # NaN where the history cannot tell
    step: float = 0.0  # between its values, where they are whole numbers


@dataclass(frozen=True)
class Claim:
    """That a statistic of one variant is less, or more, than another's or a constant."""

    conclusion: int  # of the notebook; 4: BatchNorm's running statistics lag behind the weights
    statement: str
    statistic: Statistic
    variant: str
    sign: int  # -1: less, 1: more
    than: str | float  # a variant, trained with the same seeds, or a number


def _test(history: History) -> list[float]:
    return [float(row["test_accuracy"]) for row in history]


def _falls(history: History) -> float:
    curve = _test(history)
    falls = [max(0.0, before - after) for before, after in pairwise(curve)]
    return float(np.mean(falls)) if falls else math.nan


def _epochs_to_target(history: History) -> float:
    reached = [epoch for epoch, value in enumerate(_test(history), start=1) if value >= TARGET]
    return min(reached, default=len(history) + 1)


def _gradient_ratio(history: History) -> float:
    first, last = (
        np.log10(np.maximum([float(row[f"gradient_{layer}"]) for row in history], SMALLEST))
        for layer in ("conv1", "linear3")
    )
    return float(np.mean(first - last))


def _gain_of_training_mode(history: History) -> float:
    return float(
        np.mean([float(row["seen_accuracy"]) - float(row["train_accuracy"]) for row in history])
    )


def _gain_of_batch_statistics(history: History) -> float:
    last = history[-1]
    return float(last["test_accuracy_batch_statistics"]) - float(last["test_accuracy"])


FINAL = Statistic("test accuracy after the last epoch", lambda history: _test(history)[-1])
BEST = Statistic("highest test accuracy of all epochs", lambda history: max(_test(history)))
OSCILLATION = Statistic(
    "mean absolute change of the test accuracy from one epoch to the next",
    lambda history: oscillation(_test(history)),
)
FALLS = Statistic(
    "mean fall of the test accuracy from one epoch to the next, a rise counting as none", _falls
)
EPOCHS_TO_TARGET = Statistic(
    f"first epoch with a test accuracy of {TARGET:g} or more; if there is none, one more than "
    "there are epochs",
    _epochs_to_target,
    step=1,
)
UNDER_HALF = Statistic(
    "number of epochs with a test accuracy under 0.5",
    lambda history: float(np.sum(np.less(_test(history), 0.5))),
    step=1,
)
GRADIENT_RATIO = Statistic(
    "log10 of the first layer's gradient norm over the last layer's, mean over the epochs",
    _gradient_ratio,
)
TRAINING_MODE = Statistic(
    "accuracy on the training images in training mode less that in evaluation mode, mean over "
    "the epochs",
    _gain_of_training_mode,
)
BATCH_STATISTICS = Statistic(
    "test accuracy of the saved weights with batch statistics less that with running ones",
    _gain_of_batch_statistics,
)

_RELU, _SIGMOID, _BARE = "adam", "sigmoid", "sigmoid-nodropout"  # all three with Adam
# fmt: off
CLAIMS: Mapping[str, Claim] = {
    "adam-sooner": Claim(
        1, "Adam reaches 95 % in fewer epochs than SGD", EPOCHS_TO_TARGET, "adam", -1, "sgd"),
    "adam-steadier": Claim(
        1, "Adam oscillates less than SGD", OSCILLATION, "adam", -1, "sgd"),
    "adam-falls": Claim(
        1, "Adam falls back less than SGD", FALLS, "adam", -1, "sgd"),
    "adam-final": Claim(
        1, "Adam ends better than SGD", FINAL, "adam", 1, "sgd"),
    "adam-best": Claim(
        1, "Adam's best epoch is better than SGD's", BEST, "adam", 1, "sgd"),
    "sigmoid-final": Claim(
        2, "Sigmoid ends worse than ReLU", FINAL, _SIGMOID, -1, _RELU),
    "sigmoid-best": Claim(
        2, "Sigmoid's best epoch is worse than ReLU's", BEST, _SIGMOID, -1, _RELU),
    "sigmoid-half": Claim(
        2, "Sigmoid's best epoch is under 50 %", BEST, _SIGMOID, -1, 0.5),
    "sigmoid-under-half": Claim(
        2, "Sigmoid is under 50 % in more epochs than ReLU", UNDER_HALF, _SIGMOID, 1, _RELU),
    "sigmoid-oscillates": Claim(
        2, "Sigmoid oscillates more than ReLU", OSCILLATION, _SIGMOID, 1, _RELU),
    "sigmoid-falls": Claim(
        2, "Sigmoid falls back more than ReLU", FALLS, _SIGMOID, 1, _RELU),
    "sigmoid-gradients": Claim(
        2, "Sigmoid's gradients shrink more towards the first layer than ReLU's",
        GRADIENT_RATIO, _SIGMOID, -1, _RELU),
    "nodropout-gradients": Claim(
        2, "Without dropout, sigmoid's gradients shrink more too",
        GRADIENT_RATIO, _BARE, -1, _RELU),
    "nodropout-steadier": Claim(
        3, "Sigmoid oscillates less without dropout", OSCILLATION, _BARE, -1, _SIGMOID),
    "nodropout-falls": Claim(
        3, "Sigmoid falls back less without dropout", FALLS, _BARE, -1, _SIGMOID),
    "nodropout-final": Claim(
        3, "Sigmoid ends better without dropout", FINAL, _BARE, 1, _SIGMOID),
    "nodropout-best": Claim(
        3, "Sigmoid's best epoch is better without dropout", BEST, _BARE, 1, _SIGMOID),
    "sigmoid-training-mode": Claim(
        4, "Sigmoid does better in training mode than in evaluation mode",
        TRAINING_MODE, _SIGMOID, 1, 0.0),
    "nodropout-training-mode": Claim(
        4, "Without dropout, sigmoid does better in training mode too",
        TRAINING_MODE, _BARE, 1, 0.0),
    "relu-training-mode": Claim(
        4, "ReLU gains less than sigmoid in training mode", TRAINING_MODE, _RELU, -1, _SIGMOID),
    "sigmoid-batch-statistics": Claim(
        4, "Sigmoid's weights do better with batch statistics than with running ones",
        BATCH_STATISTICS, _SIGMOID, 1, 0.0),
    "nodropout-batch-statistics": Claim(
        4, "Without dropout, sigmoid's weights do better with batch statistics too",
        BATCH_STATISTICS, _BARE, 1, 0.0),
    "relu-batch-statistics": Claim(
        4, "ReLU gains less than sigmoid from batch statistics",
        BATCH_STATISTICS, _RELU, -1, _SIGMOID),
}
# fmt: on


@dataclass(frozen=True)
class Finding:
    """What the trainings say about a claim."""

    claim: Claim
    pairs: list[tuple[float, float]]  # the statistic, and what it is compared with; a seed each
    verdict: str  # supported, contradicted or undecided
    reason: str = ""  # why it is undecided
    interval: tuple[float, float] | None = None  # of the mean difference over all seeds
    seeds_needed: int | None = None  # to decide it with this spread; None if there is no telling

    @property
    def differences(self) -> list[float]:
        """What is left of the statistic when the other is taken away; a seed each."""
        return [value - other for value, other in self.pairs]

    @property
    def mean(self) -> float | None:
        """The mean difference."""
        return float(np.mean(self.differences)) if self.pairs else None

    def __str__(self) -> str:
        """Say it in words."""
        numbers = "" if self.mean is None else f"{self.mean:+.3g}"
        if self.interval:
            numbers += f" ({self.interval[0]:+.3g} to {self.interval[1]:+.3g})"
        return f"{self.verdict}: {', '.join(filter(None, (numbers, self.reason)))}"

    def as_json(self) -> dict[str, object]:
        """Return it with its claim, ready for JSON."""
        claim = self.claim
        return {
            "conclusion": claim.conclusion,
            "statement": claim.statement,
            "statistic": claim.statistic.words,
            "of": claim.variant,
            "claimed": "less" if claim.sign < 0 else "more",
            "than": claim.than,
            "pairs": self.pairs,
            "mean_difference": self.mean,
            "interval": self.interval,
            "verdict": self.verdict,
            "reason": self.reason,
            "seeds_needed": self.seeds_needed,
        }


def examine(claim: Claim, curves: Mapping[str, Sequence[Row]]) -> Finding:
    """Return what the trainings say about a claim.

    The differences are paired, since a seed draws the same permutations for every variant. Their
    mean has a t interval (Student, https://doi.org/10.1093/biomet/6.1.1), as if differences were
    drawn from a normal distribution. The claim is supported if all of the interval is on its side
    of zero, contradicted if all is on the other, else undecided: so are one seed, a tie, and a
    training that diverged. How many seeds would decide it is how many would do so in four of five
    repetitions, if the mean difference and its spread are what they seem.

    Args:
        claim: the statement.
        curves: by variant, a row per seed and epoch, seed after seed.
    """
    names = [claim.variant, *([claim.than] if isinstance(claim.than, str) else [])]
    if missing := [name for name in names if name not in curves]:
        return Finding(claim, [], "undecided", f"there is no variant {', '.join(missing)}")
    pairs = list(_pairs(claim, curves))
    if not np.isfinite(pairs).all():
        return Finding(claim, [], "undecided", "a history is too short, or not finite")
    found = Finding(claim, pairs, "undecided", "one seed cannot decide, it takes 2 or more")
    if len(pairs) == 1 or found.mean is None:
        return found
    # Whole numbers may agree by chance: no less spread than two errors of rounding have.
    spread = max(float(np.std(found.differences, ddof=1)), claim.statistic.step / math.sqrt(6))
    half = float(_quantile(0.5 + CONFIDENCE / 2, len(pairs)) * spread / math.sqrt(len(pairs)))
    interval = (found.mean - half, found.mean + half)
    if abs(found.mean) < ROUNDING:
        return Finding(claim, pairs, "undecided", "a tie", interval)
    if abs(found.mean) > half:
        verdict = "supported" if found.mean * claim.sign > 0 else "contradicted"
        return Finding(claim, pairs, verdict, interval=interval)
    needed = _seeds_needed(abs(found.mean) / spread)
    seeds = f"about {needed}" if needed else f"more than {MOST_SEEDS}"
    reason = f"{seeds} seeds would decide it"
    return Finding(claim, pairs, "undecided", reason, interval, needed)


def _pairs(claim: Claim, curves: Mapping[str, Sequence[Row]]) -> Iterator[tuple[float, float]]:
    for seed, history in _by_seed(curves[claim.variant]).items():
        other = claim.than
        if isinstance(other, str):
            other = _value(claim.statistic, _by_seed(curves[other])[seed])
        yield _value(claim.statistic, history), other


def _value(statistic: Statistic, history: History) -> float:
    """Return the statistic; NaN if the training diverged, whose accuracies mean nothing."""
    learned = [float(row[name]) for row in history for name in ("test_accuracy", "test_loss")]
    return statistic.of(history) if np.isfinite(learned).all() else math.nan


def _by_seed(rows: Sequence[Row]) -> dict[object, History]:
    return {seed: [*group] for seed, group in groupby(rows, key=lambda row: row["seed"])}


def _quantile(probability: float, seeds: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return np.asarray(t.ppf(probability, np.subtract(seeds, 1)))


def _seeds_needed(effect: float) -> int | None:
    """Return how many seeds decide a difference of `effect` standard deviations, with POWER."""
    seeds = np.arange(2, MOST_SEEDS + 1)
    both = _quantile(0.5 + CONFIDENCE / 2, seeds) + _quantile(POWER, seeds)
    enough = seeds[both / np.sqrt(seeds) < effect]
    return int(enough[0]) if len(enough) else None
