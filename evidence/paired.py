"""Paired differences: an exact test, an interval, and the smallest difference that they find."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.optimize import bisect
from scipy.stats import t

LEVEL = 0.01  # of each test: 0.05 over five statements, after Bonferroni
POWER = 0.8
PLANNED = 8  # seeds

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Finding:
    """What the differences of the seeds say of a statement. None stands where nothing is to say."""

    differences: list[float | None]  # one per seed; None if a training of the pair diverged
    mean: float | None
    interval: tuple[float, float] | None  # 99 %, of the mean
    share_above: float | None
    p: float | None = None
    interval_agrees: bool | None = None  # whether it excludes zero exactly if p < LEVEL
    verdict: Literal["supported", "contradicted", "undecided", "short of the protocol"] = (
        "undecided"
    )


def judge(differences: Sequence[float], claimed: int) -> Finding:
    """Return what the differences say of the claim that they are on one side of zero, 1 or -1.

    A difference is NaN if a training of the pair diverged: then the statement is undecided. With
    fewer differences than planned there is no test and no verdict.
    """
    # Accuracies are fractions of thousands of images, so anything smaller is an error of rounding.
    listed = [round(float(x), 9) if np.isfinite(x) else None for x in differences]
    finite = [x for x in listed if x is not None]
    found = Finding(
        listed,
        mean=float(np.mean(finite)) if finite else None,
        interval=t_interval(finite) if len(finite) > 1 else None,
        share_above=share_above(finite) if finite else None,
    )
    if len(listed) < PLANNED:
        return replace(found, verdict="short of the protocol")
    if len(finite) < len(listed):
        return found
    p, (low, high) = sign_flip(finite), t_interval(finite)
    found = replace(found, p=p, interval_agrees=(low > 0 or high < 0) == (p < LEVEL))
    if p >= LEVEL:
        return found
    return replace(found, verdict="supported" if sum(finite) * claimed > 0 else "contradicted")


def sign_flip(differences: Sequence[float]) -> float:
    """Return the exact two-sided p-value of the sign-flip test of the mean difference.

    If nothing tells the two sides apart, each difference is as likely as its negative. The p-value
    is the share of all 2^n sign patterns whose mean is at least as far from zero as the observed
    one. A difference of zero stays zero in every pattern.

    Source: R. A. Fisher, The Design of Experiments, 1935, section 21.
    """
    return float(_p_values(np.array([differences], np.float64))[0])


def _p_values(samples: Floats) -> Floats:
    """Return the p-value of each row, (N), of samples (N, n)."""
    # Half of the patterns suffice: the other half has the same sums with the other sign.
    patterns = np.array([(1, *signs) for signs in product((1, -1), repeat=samples.shape[1] - 1)])
    sums = np.abs(samples @ patterns.T)
    observed = np.abs(samples.sum(axis=1, keepdims=True))
    # Sums that are equal in exact arithmetic may differ in their last digits.
    return np.asarray(np.mean(sums >= observed * (1 - 1e-9), axis=1))


def t_interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 99 % interval of the mean of two differences or more.

    It takes them as drawn from a normal distribution.

    Source: Student, The probable error of a mean, 1908, https://doi.org/10.1093/biomet/6.1.1.
    """
    n, mean = len(differences), float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / n**0.5
    half = float(t.ppf(1 - LEVEL / 2, n - 1)) * error
    return mean - half, mean + half


def share_above(differences: Sequence[float]) -> float:
    """Return P(A > B) as the share of the pairs with A above B, a tie counting half.

    Source: Bouthillier et al., Accounting for variance in machine learning benchmarks, 2021,
    arXiv 2103.03098.
    """
    signs = np.sign(differences)
    return float(np.mean((signs + 1) / 2))


def detectable(n: int) -> float:
    """Return the mean that the sign-flip test finds with probability POWER, by simulation.

    Args:
        n: seeds, whose differences are drawn from a normal distribution with standard deviation 1.
    """
    noise = np.random.default_rng(0).standard_normal((10_000, n))

    def excess(mean: float) -> float:
        return float(np.mean(_p_values(noise + mean) < LEVEL)) - POWER

    return float(bisect(excess, 0, 5, xtol=1e-3))


if __name__ == "__main__":
    argparse.ArgumentParser("python -m evidence.paired", description=__doc__).parse_args()
    for seeds in (8, 10):
        print(f"{seeds} seeds: {detectable(seeds):.1f} standard deviations")
