"""evidence/: what a replicate measures, what the differences say, when a verdict is given."""

import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import norm, permutation_test, ttest_1samp
from torch import nn

import stages.train
from evidence import record, replicate
from evidence.batch_statistics import accuracy, batches_now, frozen, moving, norms, watch
from evidence.paired import detectable, judge, share_above, sign_flip, t_interval
from evidence.record import Record, clean_commit, learning_digest
from evidence.statements import (
    EPOCHS,
    FROZEN,
    MOVING,
    PREDICTIONS,
    SEEDS,
    SETTLED,
    STATEMENTS,
    VARIANTS,
    Block,
    fall_once_learning,
)
from evidence.verdicts import judge_predictions, judge_statements, outcome, read_blocks
from evidence.verdicts import main as write_verdicts
from stages.learning.history import EpochRow
from stages.learning.inference import Images, load_images
from stages.learning.loop import make_optimizer, set_seed, train
from stages.learning.network import Network
from stages.learning.split import SPLITS, Split, save_split
from stages.learning.weights import untrained
from stages.support.errors import InputError
from stages.support.params import Params, load_params
from stages.support.tables import read_table

CHECKOUT = Path(__file__).parents[1]
PER_CLASS, BATCH = 7, 8  # of the small subset: 21 images, so the third batch has 5
SEED = 100


@pytest.fixture(autouse=True)
def one_thread_and_quick_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(os, "fsync", lambda _: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder: the real params.yaml on a small network, and a small subset."""
    values = yaml.safe_load((CHECKOUT / "params.yaml").read_text(encoding="utf-8"))
    values["network"] = {"batch_norm_momentum": 0.1, "widths": [4, "M", 8, "M"], "hidden": [8]}
    values["train"] |= {"epochs": 3, "batch_size": BATCH, "device": "cpu", "precision": "fp32"}
    values["data"] = {"per_class": 600, "pad": 0, "scale": "none", "classes": [0, 1, 2]}
    relu, sigmoid = ({"activation": kind, "dropout": 0.5} for kind in ("relu", "sigmoid"))
    adam = {"optimizer": "adam", "lr": 0.001}
    values["variants"] = {
        "sgd": relu | {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9},
        "adam": relu | adam,
        "sigmoid": sigmoid | adam,
        "sigmoid-nodropout": sigmoid | adam | {"dropout": 0},
    }
    values["variant"], values["seeds"] = "sgd", [SEED]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), PER_CLASS)
    for name in SPLITS:
        images = random.integers(0, 60 + 80 * labels[:, None, None, None], (len(labels), 1, 28, 28))
        split = Split(images.astype(np.uint8), labels, np.arange(len(labels)))
        save_split(tmp_path / f"subset/{name}.safetensors", split)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def params(folder: Path) -> Params:
    return load_params()


@pytest.fixture
def splits(folder: Path) -> dict[str, Images]:
    return {name: load_images(folder / "subset", name, torch.device("cpu")) for name in SPLITS}


def new_network(params: Params, variant: str = "sigmoid") -> Network:
    set_seed(SEED, epoch=0)
    return untrained(replicate.description(params, variant, SEED))


# What a replicate measures.


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_history_is_that_of_the_stage(
    variant: str, folder: Path, params: Params, splits: dict[str, Images]
) -> None:
    stages.train.main(
        variant, SEED, folder / "subset", folder / "weights", folder / "history", folder / "timing"
    )
    expected = [row.model_dump() for row in read_table(folder / "history", EpochRow)]
    rows = list(replicate.replicate(params, variant, SEED, splits, test_images=5))
    assert [{key: row[key] for key in expected[0]} for row in rows] == expected
    assert set(rows[0]) - set(expected[0]) == {*MOVING, *FROZEN}


def test_measuring_changes_no_bit_of_a_training(params: Params, splits: dict[str, Images]) -> None:
    def trained(measure: bool) -> tuple[list[EpochRow], dict[str, torch.Tensor], torch.Tensor]:
        network = new_network(params)
        optimizer = make_optimizer(network, params.variants["sigmoid"])
        copy, batches, rows = deepcopy(network), list[torch.Tensor](), []
        if measure:
            watch(network, batches.append)
        for row in train(network, optimizer, splits, SEED, range(1, 3), BATCH):
            rows.append(row)
            if measure:
                copy.load_state_dict(network.state_dict())
                batches_now(copy, splits["train"].images, BATCH, torch.Generator())
                accuracy(copy, moving(batches, 0.5), splits["test"])
        return rows, network.state_dict(), torch.get_rng_state()

    rows, state, random = trained(measure=False)
    measured_rows, measured_state, measured_random = trained(measure=True)
    assert measured_rows == rows
    assert state.keys() == measured_state.keys()
    assert all(torch.equal(state[name], measured_state[name]) for name in state)
    assert torch.equal(random, measured_random)


def test_between_two_epochs_nothing_of_the_network_changes(
    params: Params, splits: dict[str, Images], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[dict[str, torch.Tensor], list[bool], torch.Tensor]] = []

    def watched(network: Network, *rest: Any) -> Iterator[EpochRow]:
        def now() -> tuple[dict[str, torch.Tensor], list[bool], torch.Tensor]:
            modes = [layer.training for layer in network.modules()]
            return deepcopy(network.state_dict()), modes, torch.get_rng_state()

        for row in train(network, *rest):
            before = now()
            yield row
            seen.extend([before, now()])

    monkeypatch.setattr(replicate, "train", watched)
    list(replicate.replicate(params, "sigmoid", SEED, splits, test_images=5))
    assert len(seen) == 6
    for (state, modes, random), (state_after, modes_after, random_after) in zip(
        seen[::2], seen[1::2], strict=True
    ):
        assert all(torch.equal(state[name], state_after[name]) for name in state)
        assert modes == modes_after
        assert torch.equal(random, random_after)


def by_hand(network: Network, images: torch.Tensor) -> list[float]:
    """Return a batch's statistics, computed with NumPy layer by layer, in training mode."""
    values, found = images, list[float]()
    for layer in network.children():
        if isinstance(layer, nn.BatchNorm2d):
            maps = values.detach().double().numpy()
            mean = maps.mean(axis=(0, 2, 3))
            found += [*mean, *maps.var(axis=(0, 2, 3), ddof=1)]
            of_all = maps.var(axis=(0, 2, 3), ddof=0)
            shape = (1, -1, 1, 1)
            scaled = (maps - mean.reshape(shape)) / np.sqrt(of_all + layer.eps).reshape(shape)
            values = torch.from_numpy(scaled).float()  # the layer's weight is 1, its bias 0
        elif isinstance(layer, nn.Flatten):
            break
        else:
            values = layer(values)
    return found


def test_frozen_statistics_are_the_mean_over_the_first_shuffled_batches(
    params: Params, splits: dict[str, Images]
) -> None:
    network, images = new_network(params), splits["train"].images
    batches = batches_now(network, images, BATCH, torch.Generator().manual_seed(5))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(5))
    expected = [by_hand(network, images[part]) for part in torch.split(order, BATCH)]
    assert len(batches) == len(expected) == 3
    for count in (1, 2, None):
        mean = np.mean(expected[:count], axis=0)
        assert frozen(batches, count).numpy() == pytest.approx(mean, rel=1e-4, abs=1e-5)


def test_a_moving_average_is_bias_corrected() -> None:
    batches = [torch.tensor([x, -x], dtype=torch.float64) for x in (3.0, 5.0, 11.0)]
    # From zero with momentum 0.5: 1.5, 3.25, 7.125. Divided by 1 - 0.5^3.
    assert moving(batches, 0.5).tolist() == pytest.approx([7.125 / 0.875, -7.125 / 0.875])
    # With momentum 0.1: 0.3, 0.77, 1.793. Divided by 1 - 0.9^3.
    assert moving(batches, 0.1).tolist() == pytest.approx([1.793 / 0.271, -1.793 / 0.271])
    assert moving(batches, 1).tolist() == [11, -11]
    assert moving(batches[:1], 0.01).tolist() == [3, -3]


def test_the_average_of_momentum_01_is_the_networks_own(
    params: Params, splits: dict[str, Images]
) -> None:
    network, batches = new_network(params), list[torch.Tensor]()
    watch(network, batches.append)
    optimizer = make_optimizer(network, params.variants["sigmoid"])
    list(train(network, optimizer, splits, SEED, range(1, 2), BATCH))
    own = [
        running for layer in norms(network) for running in (layer.running_mean, layer.running_var)
    ]
    # PyTorch's start is a mean of 0 and a variance of 1, which 3 batches leave 0.9^3 of.
    start = torch.cat([torch.full_like(x, part % 2) for part, x in enumerate(own) if x is not None])
    expected = moving(batches, 0.1) * (1 - 0.9**3) + start * 0.9**3
    values = torch.cat([x.double() for x in own if x is not None])
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)


def test_the_fixed_images_are_the_first_of_each_class(splits: dict[str, Images]) -> None:
    chosen = replicate.first_of_each_class(splits["test"], 2)
    positions = [0, 1, PER_CLASS, PER_CLASS + 1, 2 * PER_CLASS, 2 * PER_CLASS + 1]
    assert torch.equal(chosen.images, splits["test"].images[positions])
    assert chosen.labels.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(InputError, match="only 7 test images, and 8"):
        replicate.first_of_each_class(splits["test"], 8)


# Where a table comes from.


@pytest.fixture
def checkout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder as a git repository with the code, committed."""
    shutil.copytree(CHECKOUT / "stages/learning", folder / "stages/learning")
    monkeypatch.setattr(record, "CHECKOUT", folder)
    # As a hook has them: these must not matter.
    monkeypatch.setenv("GIT_DIR", str(folder / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(folder / "elsewhere/index"))
    record.git("init", "--quiet")
    record.git("add", "stages", "params.yaml")
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    record.git(*who, "commit", "--quiet", "--message", "code")
    return folder


def test_a_table_names_its_origin(checkout: Path) -> None:
    replicate.main("adam", SEED, checkout / "subset", checkout / "tables", test_images=5)
    read = record.read(checkout / "tables/adam-100.csv")
    assert read is not None
    origin, rows = read
    assert [row.epoch for row in rows] == [1, 2, 3]
    assert origin.commit == record.git("rev-parse", "HEAD").strip()
    assert origin.learning == learning_digest()
    assert origin.training["variant"], origin.training["seed"] == ("adam", SEED)
    assert (origin.training["precision"], origin.training["epochs"]) == ("fp32", 3)
    assert origin.ran_on["threads"] == 1
    assert sorted(path.name for path in (checkout / "tables").iterdir()) == [
        "adam-100.csv",
        "adam-100.json",
    ]
    with (checkout / "tables/adam-100.csv").open("a", encoding="utf-8") as file:
        file.write("4" + ",0.5" * 20 + "\n")
    with pytest.raises(InputError, match="adam-100"):
        record.read(checkout / "tables/adam-100.csv")


def test_code_that_is_not_committed_trains_nothing(checkout: Path) -> None:
    before = learning_digest()
    clean_commit()
    (checkout / "stages/learning/loop.py").open("a", encoding="utf-8").write("# an edit\n")
    assert learning_digest() != before
    with pytest.raises(InputError, match=r"stages/learning/loop.py: not as committed"):
        replicate.main("adam", SEED, checkout / "subset", checkout / "tables", test_images=5)
    record.git("checkout", "--", "stages")
    (checkout / "stages/learning/new.py").touch()
    with pytest.raises(InputError, match=r"stages/learning/new.py: not as committed"):
        clean_commit()


def test_wrong_threads_a_missing_subset_and_an_unknown_variant_are_told(folder: Path) -> None:
    torch.set_num_threads(2)
    with pytest.raises(InputError, match="one thread a training, not 2: set OMP_NUM_THREADS=1"):
        replicate.main("adam", SEED, folder / "subset")
    torch.set_num_threads(1)
    with pytest.raises(InputError, match="`dvc repro subset` makes it"):
        replicate.main("adam", SEED, folder / "nowhere")
    with pytest.raises(InputError, match="no variant adamw"):
        replicate.main("adamw", SEED, folder / "subset")


# What differences say.


def test_the_sign_flip_test_by_hand() -> None:
    # Of 1, 2 and 4 the eight sums are +-7, +-5, +-3 and +-1.
    assert sign_flip([1, 2, 4]) == 2 / 8
    assert sign_flip([-1, 2, 4]) == 4 / 8
    assert sign_flip([1, 2, -4]) == 8 / 8
    # A zero is both its signs, so a pattern counts twice; equal sums count however they round.
    assert sign_flip([0, 2, 4]) == 4 / 8
    assert sign_flip([0.1, 0.2, -0.3, 0.4]) == sign_flip([1, 2, -3, 4])
    assert sign_flip([0, 0, 0]) == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_sign_flip_test_is_scipys(seed: int) -> None:
    differences = np.random.default_rng(seed).normal(0.5, 1, 8)
    expected = permutation_test((differences,), np.mean, permutation_type="samples")
    assert sign_flip([*differences]) == pytest.approx(expected.pvalue)
    interval = ttest_1samp(differences, 0).confidence_interval(0.99)
    assert t_interval([*differences]) == pytest.approx((interval.low, interval.high))


def test_a_tie_counts_half() -> None:
    assert share_above([1, 2, 0, -1]) == 2.5 / 4


def test_eight_seeds_detect_what_puts_all_on_one_side() -> None:
    # The smallest p-values of 8 seeds are 2/256 and 4/256, so all signs have to be the same.
    assert detectable(8) == pytest.approx(norm.ppf(0.8 ** (1 / 8)), abs=0.03)
    protocol = (CHECKOUT / "evidence/protocol.md").read_text(encoding="utf-8")
    for seeds in (8, 10):
        assert f"\n{seeds} seeds: {detectable(seeds):.1f} standard deviations\n" in protocol


def test_a_verdict_takes_all_seeds_on_one_side() -> None:
    up = [1.0, 2, 3, 4, 5, 6, 7, 8]
    assert judge(up, 1).verdict == "supported"
    assert judge(up, -1).verdict == "contradicted"
    assert judge([-x for x in up], -1).verdict == "supported"
    assert judge(up, 1).p == 2 / 256
    tie = judge([0.0, *up[1:]], 1)
    assert (tie.verdict, tie.p) == ("undecided", 4 / 256)
    assert judge([0.0] * 8, 1).verdict == "undecided"
    rounded = judge([(0.1 + 0.2) - 0.3, *up[1:]], 1)
    assert (rounded.differences[0], rounded.p) == (0, 4 / 256)
    one_off = judge([-0.01, *[5.0] * 7], 1)
    assert (one_off.verdict, one_off.interval_agrees) == ("undecided", False)
    diverged = judge([math.nan, *up[1:]], 1)
    assert (diverged.verdict, diverged.p, diverged.differences[0]) == ("undecided", None, None)
    assert diverged.mean == 5
    short = judge(up[:7], 1)
    assert (short.verdict, short.p) == ("short of the protocol", None)
    assert short.interval == pytest.approx(t_interval(up[:7]))


# Made-up tables of a known answer.


Accuracies = Callable[[str, int, int], dict[str, float]]  # of variant, seed, epoch


def made_up(accuracies: Accuracies) -> dict[int, Block]:
    """Return eight blocks, in which every column is 0.5 unless `accuracies` says otherwise."""
    columns = ("train_accuracy", "train_loss", "test_accuracy", "test_loss", "seen_loss", *SETTLED)
    return {
        seed: {
            variant: [
                EpochRow.model_validate(
                    {"epoch": epoch, **dict.fromkeys(columns, 0.5)}
                    | accuracies(variant, seed, epoch)
                )
                for epoch in range(1, EPOCHS + 1)
            ]
            for variant in VARIANTS
        }
        for seed in SEEDS
    }


def write_tables(folder: Path, **changed: Any) -> None:
    """Write the tables of `as_claimed`; `changed` is of the record of adam with seed 103."""
    for seed, block in made_up(as_claimed).items():
        for variant, history in block.items():
            origin = {
                "commit": "c",
                "learning": "l",
                "training": {"variant": variant, "seed": seed, "batch_size": 64},
                "images": {},
                "ran_on": {"processor": "p"},
            } | (changed if (variant, seed) == ("adam", 103) else {})
            rows = [row.model_dump() for row in history]
            record.write(folder / f"{variant}-{seed}.csv", rows, Record.model_validate(origin))


def as_claimed(variant: str, seed: int, epoch: int) -> dict[str, float]:
    """Return accuracies for which all that the notebook and the prediction `lag` say is true."""
    noise = (seed - 103.5) / 1000
    level = {"sgd": 0.8, "adam": 0.9, "sigmoid": 0.3, "sigmoid-nodropout": 0.4}[variant]
    swing = {"sgd": 0.05, "adam": 0.01, "sigmoid": 0.1, "sigmoid-nodropout": 0.02}[variant]
    test = level + swing * (1 + noise) * (-1) ** epoch + noise
    stale = {"moving_1": 0.04, "moving_0.5": 0.03, "moving_0.1": 0.01, "moving_0.01": 0.0}
    still = {"frozen_1": 0.04, "frozen_3": 0.05, "frozen_19": 0.06, "frozen_all": 0.07}
    by_statistics = {name: test * (1 + more) for name, more in (stale | still).items()}
    return {"test_accuracy": test, "seen_accuracy": test * 1.1, **by_statistics}


def mirrored(variant: str, seed: int, epoch: int) -> dict[str, float]:
    return {name: 1 - value for name, value in as_claimed(variant, seed, epoch).items()}


def outcomes(blocks: Mapping[int, Block], variant: str) -> dict[str, str]:
    found = judge_predictions([block[variant] for block in blocks.values()])
    return {name: each["outcome"] for name, each in found.items()}


def test_what_the_notebook_claims_is_supported(tmp_path: Path) -> None:
    write_tables(tmp_path)
    write_verdicts(tmp_path, tmp_path)
    found = json.loads((tmp_path / "verdicts.json").read_text(encoding="utf-8"))
    assert found["seeds"] == [*SEEDS]
    assert {each["verdict"] for each in found["statements"].values()} == {"supported"}
    assert found["statements"]["1"]["mean"] == pytest.approx(10)
    # A step is twice the swing, and 4 of the 9 steps are falls.
    assert found["statements"]["4"]["mean"] == pytest.approx(-100 * 4 / 9 * 2 * (0.1 - 0.02))
    assert found["statements"]["5"]["mean"] > 0
    assert found["predictions"]["sigmoid"]["lag"]["outcome"] == "holds"
    for name in ("statements", "statistics"):
        assert (tmp_path / f"figures/{name}.png").stat().st_size > 10_000


def test_the_opposite_is_contradicted() -> None:
    blocks = made_up(mirrored)
    found = judge_statements(blocks)
    assert {found[name].verdict for name in ("1", "3", "5", "1 frozen")} == {"contradicted"}
    assert found["1"].mean == pytest.approx(-10)
    assert outcomes(blocks, "sigmoid")["lag"] == "fails"


def test_a_diverged_training_leaves_its_statements_undecided() -> None:
    def diverges(variant: str, seed: int, epoch: int) -> dict[str, float]:
        lost = (variant, seed) == ("sgd", 105) and epoch > 4
        return as_claimed(variant, seed, epoch) | ({"train_loss": math.nan} if lost else {})

    blocks = made_up(diverges)
    found = judge_statements(blocks)
    for name, statement in STATEMENTS.items():
        expected = "undecided" if "sgd" in (statement.a[0], statement.b[0]) else "supported"
        assert found[name].verdict == expected
    assert found["1"].differences[5] is None
    assert outcomes(blocks, "sgd")["lag"] == "open"
    assert outcomes(blocks, "adam")["lag"] == "holds"


def test_there_is_no_verdict_before_all_eight_blocks(tmp_path: Path) -> None:
    write_tables(tmp_path)
    (tmp_path / "sigmoid-104.json").unlink()
    with pytest.raises(InputError, match="7 of 8 blocks, no verdicts"):
        write_verdicts(tmp_path, tmp_path)
    assert not (tmp_path / "verdicts.json").exists()
    write_verdicts(tmp_path, tmp_path, short=True)
    found = json.loads((tmp_path / "verdicts.json").read_text(encoding="utf-8"))
    assert found["seeds"] == [100, 101, 102, 103, 105, 106, 107]
    assert {each["verdict"] for each in found["statements"].values()} == {"short of the protocol"}
    assert {each["p"] for each in found["statements"].values()} == {None}
    assert len(found["statements"]["1"]["interval"]) == 2
    predicted = found["predictions"]["adam"].values()
    assert {each["outcome"] for each in predicted} == {"short of the protocol"}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"learning": "other"}, "more than one stages/learning for seed 103: l, other"),
        ({"ran_on": {"processor": "q"}}, "more than one machine for seed 103"),
        ({"images": {"test": "other"}}, "more than one subset"),
        ({"training": {"variant": "adam", "batch_size": 32}}, "more than one setting"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    write_tables(tmp_path, **changed)
    with pytest.raises(InputError, match=told):
        write_verdicts(tmp_path, tmp_path)


def test_a_short_table_is_refused(tmp_path: Path) -> None:
    write_tables(tmp_path)
    read = record.read(tmp_path / "adam-103.csv")
    assert read is not None
    rows = [row.model_dump() for row in read[1][:-1]]
    record.write(tmp_path / "adam-103.csv", rows, read[0])
    with pytest.raises(InputError, match=r"adam-103\.csv has not 10 epochs"):
        write_verdicts(tmp_path, tmp_path)


# Settled accuracies, in points, for which a prediction holds, and those for which others fail.
LAG = {"moving_1": 44, "moving_0.5": 43, "moving_0.1": 41, "moving_0.01": 40}
NOISE = {"moving_1": 40, "moving_0.5": 41, "moving_0.1": 43, "moving_0.01": 44}
BOTH = {"moving_1": 40, "moving_0.5": 43, "moving_0.1": 42, "moving_0.01": 40}
AS_MOVING = {"frozen_1": 40, "frozen_3": 41, "frozen_19": 43, "frozen_all": 50}
ABOVE_MOVING = {"frozen_1": 45, "frozen_3": 46, "frozen_19": 47, "frozen_all": 48}


@pytest.mark.parametrize(
    ("accuracies", "holding"),
    [
        ({**LAG, **ABOVE_MOVING}, {"lag"}),
        ({**NOISE, **AS_MOVING}, {"noise"}),
        ({**BOTH, **ABOVE_MOVING}, {"both"}),
        ({**NOISE, **AS_MOVING, "frozen_all": 45}, {"noise", "neither"}),
        ({**LAG, **ABOVE_MOVING, "frozen_3": 42}, set()),
    ],
)
def test_the_predictions(accuracies: dict[str, int], holding: set[str]) -> None:
    numbers = {**accuracies, "seen_accuracy": 60}
    found = {
        name: outcome([judge([number(numbers)] * 8, 1) for number in conditions.values()])
        for name, conditions in PREDICTIONS.items()
    }
    assert {name for name, result in found.items() if result == "holds"} == holding


def test_without_a_gap_there_is_nothing_to_explain() -> None:
    numbers = {**NOISE, **AS_MOVING, "seen_accuracy": 42}
    for name in ("noise", "neither"):
        findings = [judge([number(numbers)] * 8, 1) for number in PREDICTIONS[name].values()]
        assert outcome(findings) == "fails"


def test_the_statistics_of_a_curve() -> None:
    curve = [10.0, 20, 15, 35, 30, 30, 40, 50, 20, 60]
    change = sum(abs(after - before) for before, after in pairwise(curve)) / 9
    assert [each.statistic(curve) for each in STATEMENTS.values()] == pytest.approx(
        [31, 40 / 9, 130 / 3, 40 / 9, 35, 31, 40 / 9, change, 35 / 6, change]
    )
    assert math.isnan(fall_once_learning([10, 15, 30]))
    assert math.isnan(fall_once_learning([10, 15, 20]))


# What is committed.

COMMITTED = sorted((CHECKOUT / "evidence/tables").glob("*.csv"))


@pytest.mark.skipif(not COMMITTED, reason="no replicate is committed yet")
def test_the_committed_tables_belong_together_and_come_after_the_protocol() -> None:
    blocks = read_blocks(CHECKOUT / "evidence/tables")
    if record.git("rev-parse", "--is-shallow-repository").strip() == "true":
        pytest.skip("a shallow clone lacks the commits")
    protocol = record.git("log", "-1", "--format=%H", "--", "evidence/protocol.md").strip()
    for path in COMMITTED:
        read = record.read(path)
        assert read is not None, f"{path} has no record"
        record.git("merge-base", "--is-ancestor", protocol, read[0].commit)
    assert {*blocks} <= {*SEEDS}


@pytest.mark.skipif(
    not (CHECKOUT / "evidence/verdicts.json").exists(), reason="there are no verdicts yet"
)
def test_the_committed_verdicts_follow_from_the_tables(tmp_path: Path) -> None:
    committed = json.loads((CHECKOUT / "evidence/verdicts.json").read_text(encoding="utf-8"))
    short = len(committed["seeds"]) < len(SEEDS)
    write_verdicts(CHECKOUT / "evidence/tables", tmp_path, short)
    again = json.loads((tmp_path / "verdicts.json").read_text(encoding="utf-8"))
    assert flat(again) == pytest.approx(flat(committed))


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Return nested JSON as one level, which is all that pytest.approx compares."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {
            inner: x for name, each in items for inner, x in flat(each, f"{key}/{name}").items()
        }
    return {key: value}


def test_snakemake_trains_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("evidence", "stages"):
        shutil.copytree(CHECKOUT / name, tmp_path / name)
    write_tables(tmp_path / "evidence/tables")
    (tmp_path / "evidence/tables/sgd-106.json").unlink()
    command = "snakemake --snakefile evidence/Snakefile --cores 2 --rerun-triggers mtime --dryrun"
    done = subprocess.run(command.split(), cwd=tmp_path, capture_output=True, text=True, check=True)
    trained = [line for line in done.stdout.splitlines() if line.startswith("rule replicate")]
    assert trained == ["rule replicate_106:"]
