"""What is said of the notebook's conclusions, given curves of one's own."""

import json
import math
import subprocess
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from stages.lib.claims import CLAIMS, MOST_SEEDS, Claim, Statistic, examine
from stages.lib.files import Row

FIRST = Statistic("the first epoch's number", lambda history: float(history[0]["number"]))
FINITE = {"test_accuracy": 0.5, "test_loss": 1.0}
MORE = Claim(1, "a is more than b", FIRST, "a", 1, "b")


def curves(a: Sequence[float], b: Sequence[float]) -> dict[str, list[Row]]:
    """Return curves of two variants, with two epochs a seed and the numbers in the first."""
    return {
        variant: [
            {"seed": seed, "epoch": epoch, "number": value if epoch == 1 else 99, **FINITE}
            for seed, value in enumerate(numbers)
            for epoch in (1, 2)
        ]
        for variant, numbers in (("a", a), ("b", b))
    }


def history(**columns: Sequence[float]) -> dict[str, list[Row]]:
    """Return the curves of one seed of sigmoid."""
    epochs = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return {"sigmoid": [{"seed": 0, **FINITE, **row} for row in epochs]}


def test_a_difference_on_one_side_of_zero_decides() -> None:
    found = examine(MORE, curves([3, 4, 5], [1, 2, 2]))
    assert found.pairs == [(3, 1), (4, 2), (5, 2)]
    assert found.verdict == "supported"
    assert found.seeds_needed is None and not found.reason
    assert examine(MORE, curves([1, 2, 2], [3, 4, 5])).verdict == "contradicted"
    less = Claim(1, "a is less than b", FIRST, "a", -1, "b")
    assert examine(less, curves([3, 4, 5], [1, 2, 2])).verdict == "contradicted"
    assert examine(less, curves([1, 2, 2], [3, 4, 5])).verdict == "supported"


def test_a_variant_is_compared_with_a_number() -> None:
    alone = Claim(1, "a is less than 3", FIRST, "a", -1, 3)
    found = examine(alone, curves([1, 1.5, 1], []))
    assert (found.pairs, found.verdict) == ([(1, 3), (1.5, 3), (1, 3)], "supported")
    assert examine(alone, curves([5, 5, 5.5], [])).verdict == "contradicted"


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=8).filter(lambda x: len({*x}) > 1))
def test_the_interval_is_students(differences: list[int]) -> None:
    found = examine(MORE, curves(differences, [0] * len(differences)))
    expected = ttest_1samp(differences, 0).confidence_interval(0.95)
    assert found.interval == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)
    undecided = expected.low <= 0 <= expected.high
    assert (found.verdict == "undecided") == undecided


def test_an_undecided_one_says_how_many_seeds_it_takes() -> None:
    # Mean 1, standard deviation 2. Of many repetitions with so many seeds, four in five decide.
    found = examine(MORE, curves([-1, 1, 3], [0, 0, 0]))
    assert found.verdict == "undecided" and found.seeds_needed is not None
    assert f"about {found.seeds_needed} seeds" in found.reason
    samples = np.random.default_rng(0).normal(1, 2, (2000, found.seeds_needed))
    intervals = ttest_1samp(samples, 0, axis=1).confidence_interval(0.95)
    assert np.mean(intervals.low > 0) == pytest.approx(0.8, abs=0.04)
    found = examine(MORE, curves([-1, 1.001], [0, 0]))
    assert found.seeds_needed is None
    assert f"more than {MOST_SEEDS}" in found.reason


def test_one_seed_a_tie_and_a_missing_variant_are_undecided() -> None:
    one = examine(MORE, curves([3], [1]))
    assert (one.verdict, one.pairs, one.interval) == ("undecided", [(3, 1)], None)
    assert "one seed" in str(one) and "+2" in str(one)
    rounded = examine(MORE, curves([0.1, 0.4, 0.3], [0.6, 0.3, 0.4]))  # in all, 0.8 - 1.3
    assert rounded.reason != "a tie"
    rounded = examine(MORE, curves([0.1, 0.4, 0.3], [0.4, 0.1, 0.3]))
    assert (rounded.verdict, rounded.reason) == ("undecided", "a tie")
    tie = examine(MORE, curves([3, 4], [3, 4]))
    assert (tie.verdict, tie.interval, tie.reason) == ("undecided", (0, 0), "a tie")
    balanced = examine(MORE, curves([3, 1], [1, 3]))
    assert (balanced.verdict, balanced.reason) == ("undecided", "a tie")
    missing = examine(MORE, {"a": curves([3], [1])["a"]})
    assert (missing.verdict, missing.pairs) == ("undecided", [])
    assert "no variant b" in missing.reason


def test_seeds_that_all_agree_decide_unless_they_count_something() -> None:
    found = examine(MORE, curves([3, 3, 3], [1, 1, 1]))
    assert (found.verdict, found.interval) == ("supported", (2, 2))
    counted = Claim(1, "", Statistic("", FIRST.of, step=1), "a", 1, "b")
    assert examine(counted, curves([2, 2], [1, 1])).verdict == "undecided"
    assert examine(counted, curves([9, 9, 9], [1, 1, 1])).verdict == "supported"


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_history_that_is_not_finite_decides_nothing(broken: float) -> None:
    found = examine(MORE, curves([3, broken, 3], [1, 1, 1]))
    assert (found.verdict, found.interval) == ("undecided", None)
    assert "not finite" in found.reason
    json.dumps(found.as_json(), allow_nan=False)


def as_told(swapped: bool = False) -> dict[str, list[Row]]:
    """Return curves of three seeds for which all claims hold, or all the contrary."""
    told = {  # test accuracy by epoch; seen less train accuracy; first gradient; batch statistics
        "sgd": ([0.4, 0.94, 0.4, 0.9, 0.4], 0.0, 1.0, 0.0),
        "adam": ([0.6, 0.96, 0.95, 0.97, 0.96], 0.0, 1.0, 0.0),
        "sigmoid": ([0.1, 0.35, 0.1, 0.3, 0.1], 0.2, 1e-3, 0.2),
        "sigmoid-nodropout": ([0.1, 0.4, 0.35, 0.4, 0.4], 0.2, 1e-3, 0.2),
    }
    if swapped:
        told["sgd"], told["adam"] = told["adam"], told["sgd"]
        told["sigmoid-nodropout"] = (told["sigmoid"][0], -0.2, 10.0, -0.2)
        told["sigmoid"] = ([0.6, 0.97, 0.96, 0.98, 0.97], -0.2, 10.0, -0.2)
    return {
        variant: [
            {
                "seed": seed,
                "epoch": epoch,
                "test_accuracy": accuracy + 0.001 * seed * epoch * (-1) ** len(variant),
                "test_loss": 1.0,
                "seen_accuracy": 0.5 + gain + 0.001 * seed,
                "train_accuracy": 0.5,
                "gradient_conv1": first * (1 + 0.01 * seed),
                "gradient_linear3": 1.0,
                "test_accuracy_batch_statistics": accuracy + batch + 0.001 * seed,
            }
            for seed in range(3)
            for epoch, accuracy in enumerate(curve, start=1)
        ]
        for variant, (curve, gain, first, batch) in told.items()
    }


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_can_be_supported_and_contradicted(name: str) -> None:
    assert examine(CLAIMS[name], as_told()).verdict == "supported"
    assert examine(CLAIMS[name], as_told(swapped=True)).verdict == "contradicted"


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("column", ["test_accuracy", "test_loss"])
def test_a_training_that_diverged_decides_nothing(name: str, column: str) -> None:
    rows = as_told()
    of = CLAIMS[name].variant
    rows[of] = [
        {**row, column: math.nan} if (row["seed"], row["epoch"]) == (1, 3) else row
        for row in rows[of]
    ]
    found = examine(CLAIMS[name], rows)
    assert (found.verdict, found.pairs) == ("undecided", [])


@pytest.mark.parametrize(
    ("claim", "columns", "value"),
    [
        ("sigmoid-final", {"test_accuracy": [0.25, 0.75, 0.5]}, 0.5),
        ("sigmoid-best", {"test_accuracy": [0.25, 0.75, 0.5]}, 0.75),
        ("sigmoid-half", {"test_accuracy": [0.25, 0.75, 0.5]}, 0.75),
        ("sigmoid-oscillates", {"test_accuracy": [0.25, 0.75, 0.5]}, 0.375),
        ("sigmoid-under-half", {"test_accuracy": [0.25, 0.75, 0.5, 0.1]}, 2),
        ("sigmoid-falls", {"test_accuracy": [0.25, 0.75, 0.5]}, 0.125),
        (
            "sigmoid-gradients",
            {"gradient_conv1": [1e-3, 1e-6], "gradient_conv2": [7, 7], "gradient_linear3": [1, 10]},
            -5,
        ),
        ("sigmoid-gradients", {"gradient_conv1": [0.0], "gradient_linear3": [1.0]}, -37.93),
        (
            "sigmoid-training-mode",
            {"seen_accuracy": [0.5, 1.0], "train_accuracy": [0.25, 0.5]},
            0.375,
        ),
        (
            "sigmoid-batch-statistics",
            {"test_accuracy": [0.9, 0.25], "test_accuracy_batch_statistics": [math.nan, 0.75]},
            0.5,
        ),
    ],
)
def test_a_statistic_is_what_its_words_say(
    claim: str, columns: dict[str, list[float]], value: float
) -> None:
    rows = history(**columns)
    ((found, _),) = examine(CLAIMS[claim], rows | {"adam": rows["sigmoid"]}).pairs
    assert found == pytest.approx(value, abs=0.01)


@pytest.mark.parametrize(
    ("accuracies", "epochs"), [([0.5, 0.95, 0.9], 2), ([0.96, 0.99], 1), ([0.5, 0.949], 3)]
)
def test_never_reached_counts_as_one_more_epoch(accuracies: list[float], epochs: int) -> None:
    rows = history(test_accuracy=accuracies)["sigmoid"]
    ((found, _),) = examine(CLAIMS["adam-sooner"], {"adam": rows, "sgd": rows}).pairs
    assert found == epochs


def test_one_epoch_cannot_oscillate() -> None:
    rows = history(test_accuracy=[0.5])["sigmoid"]
    found = examine(CLAIMS["adam-steadier"], {"adam": rows, "sgd": rows})
    assert (found.verdict, found.pairs) == ("undecided", [])
    assert "too short" in found.reason


def test_the_claims_are_about_variants_that_there_are() -> None:
    committed = subprocess.check_output(["git", "show", "HEAD:params.yaml"], text=True)
    names = {claim.variant for claim in CLAIMS.values()}
    assert all(f"\n  {name}:" in committed for name in names)
    assert {claim.conclusion for claim in CLAIMS.values()} == {1, 2, 3, 4}
