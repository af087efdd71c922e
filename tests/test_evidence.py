"""evidence/: what a replicate measures, what the differences say, when a verdict is given."""

import json
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm, permutation_test, ttest_1samp

import stages.train
from evidence import record, replicate, statements, verdicts
from evidence.batch_statistics import batches_now, frozen, moving, watch
from evidence.paired import detectable, judge, share_above, sign_flip, t_interval
from evidence.report import by_epoch, of_statements
from evidence.statements import (
    EPOCHS,
    FROZEN,
    MOVING,
    PREDICTIONS,
    SEEDS,
    STATEMENTS,
    VARIANTS,
    Block,
)
from stages.learning.history import EpochRow
from stages.learning.inference import Images, load_images
from stages.learning.loop import make_optimizer, set_seed, train
from stages.learning.network import Network
from stages.learning.split import SPLITS, Split, save_split
from stages.learning.weights import load_network, untrained
from stages.support.atomic import write_json
from stages.support.digests import short_sha256
from stages.support.errors import InputError
from stages.support.params import Params, load_params
from stages.support.tables import read_table
from tests.conftest import CHECKOUT
from tools.copies import plain_params, write_params

PER_CLASS, BATCH = 7, 8  # of the small subset: 21 images, so the third batch has 5
SEED = 100


@pytest.fixture(autouse=True)
def files_need_not_reach_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder: params.yaml with a small network, and a small subset."""
    values = plain_params(CHECKOUT)
    values["network"] = {"batch_norm_momentum": 0.1, "widths": [4, "M", 8, "M"], "hidden": [8]}
    values["data"]["pad"] = 0
    values["train"] = {"epochs": 3, "batch_size": BATCH, "device": "cpu", "precision": "fp32"}
    write_params(tmp_path, values | {"seeds": [SEED]})
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


@pytest.fixture
def network(params: Params) -> Network:
    """Return an untrained network of the variant `sigmoid`."""
    set_seed(SEED, epoch=0)
    return untrained(replicate.description(params, "sigmoid", SEED))


# What a replicate measures.


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_replicate_is_the_stages_training_to_the_bit(
    variant: str,
    folder: Path,
    params: Params,
    splits: dict[str, Images],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights, history, timing = (folder / name for name in ("weights", "history", "timing"))
    stages.train.main(variant, SEED, folder / "subset", weights, history, timing)
    random = torch.get_rng_state()
    trained: list[Network] = []

    def watched(network: Network, *rest: Any) -> Iterator[EpochRow]:
        trained.append(network)
        return train(network, *rest)

    monkeypatch.setattr(replicate, "train", watched)
    rows = list(replicate.replicate(params, variant, SEED, splits, test_images=5))
    assert torch.equal(torch.get_rng_state(), random)
    expected = load_network(weights).state_dict()
    measured = trained[0].state_dict()
    assert measured.keys() == expected.keys()
    assert all(torch.equal(measured[name], expected[name]) for name in expected)
    of_stage = [row.model_dump() for row in read_table(history, EpochRow)]
    assert [{key: row[key] for key in of_stage[0]} for row in rows] == of_stage
    assert set(rows[0]) - set(of_stage[0]) == {*statements.MOVING, *statements.FROZEN}


def test_the_average_of_momentum_01_is_the_networks_own(
    params: Params, network: Network, splits: dict[str, Images]
) -> None:
    batches: list[torch.Tensor] = []
    watch(network, batches.append)
    optimizer = make_optimizer(network, params.variants["sigmoid"])
    list(train(network, optimizer, splits, SEED, range(1, 2), BATCH))
    own = {name: x.double() for name, x in network.state_dict().items() if ".running_" in name}
    # PyTorch starts with a mean of 0 and a variance of 1. Three batches leave 0.9^3 of these.
    start = torch.cat([torch.full_like(x, float("_var" in name)) for name, x in own.items()])
    expected = moving(batches, 0.1) * (1 - 0.9**3) + start * 0.9**3
    torch.testing.assert_close(torch.cat([*own.values()]), expected, rtol=1e-5, atol=1e-5)


def test_frozen_statistics_are_the_mean_over_the_first_shuffled_batches(
    network: Network, splits: dict[str, Images]
) -> None:
    images = splits["train"].images
    found = batches_now(network, images, BATCH, torch.Generator().manual_seed(5))
    expected: list[torch.Tensor] = []
    watch(network.train(), expected.append)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(5))
    for batch in torch.split(order, BATCH):
        network(images[batch])
    assert len(found) == len(expected) == 3
    assert frozen(found, None).tolist() == pytest.approx(np.mean(expected, axis=0))
    assert frozen(found, 2).tolist() == pytest.approx(np.mean(expected[:2], axis=0))


def test_a_moving_average_is_bias_corrected() -> None:
    batches = [torch.tensor([x, -x], dtype=torch.float64) for x in (3.0, 5.0, 11.0)]
    # From zero with momentum 0.5: 1.5, 3.25, 7.125. Divided by 1 - 0.5^3.
    assert moving(batches, 0.5).tolist() == pytest.approx([7.125 / 0.875, -7.125 / 0.875])
    assert moving(batches[:1], 0.01).tolist() == [3, -3]


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
    # A hook has these set. They must not matter.
    monkeypatch.setenv("GIT_DIR", str(folder / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(folder / "elsewhere/index"))
    record.checkout_git("init", "--quiet")
    record.checkout_git("add", "stages", "params.yaml")
    record.checkout_git("commit", "--quiet", "--message", "code")
    return folder


def test_a_table_names_its_origin_and_belongs_to_its_record(checkout: Path) -> None:
    replicate.main("adam", SEED, checkout / "subset", checkout / "tables", test_images=5)
    table = checkout / "tables/adam-100.csv"
    assert {*table.parent.iterdir()} == {table, table.with_suffix(".json")}
    read = record.read(table)
    assert read is not None
    origin, rows = read
    assert [row.epoch for row in rows] == [1, 2, 3]
    assert origin.commit == record.checkout_git("rev-parse", "HEAD").strip()
    assert origin.learning == record.learning_digest()
    named = {"variant": "adam", "seed": SEED, "precision": "fp32", "epochs": 3}
    assert {key: origin.training[key] for key in named} == named
    assert origin.ran_on["threads"] == 1
    with table.open("a", encoding="utf-8") as file:
        file.write("4" + ",0.5" * 20 + "\n")
    with pytest.raises(InputError, match=r"adam-100.*; `git checkout evidence/tables` restores"):
        record.read(table)
    # A table from before a column was needed. DVC cannot make it anew.
    table.write_text("epoch\n1\n", encoding="utf-8")
    lacking = origin.model_copy(update={"table": short_sha256(table)})
    write_json(table.with_suffix(".json"), lacking.model_dump())
    with pytest.raises(InputError, match=r"Field required; `git checkout evidence/tables` resto"):
        record.read(table)
    table.with_suffix(".json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"adam-100.*; `git checkout evidence/tables` restores"):
        record.read(table)


def test_code_that_is_not_committed_trains_nothing(checkout: Path) -> None:
    before = record.learning_digest()
    (checkout / "stages/learning/.loop.py").touch()
    assert record.learning_digest() == before
    (checkout / "stages/learning/.loop.py").unlink()
    record.clean_commit()
    (checkout / "stages/learning/loop.py").open("a", encoding="utf-8").write("# an edit\n")
    assert record.learning_digest() != before
    with pytest.raises(InputError, match=r"stages/learning/loop.py: not as committed"):
        replicate.main("adam", SEED, checkout / "subset", checkout / "tables", test_images=5)
    record.checkout_git("checkout", "--", "stages")
    (checkout / "stages/learning/new.py").touch()
    with pytest.raises(InputError, match=r"stages/learning/new.py: not as committed"):
        record.clean_commit()


def test_wrong_threads_a_missing_subset_and_an_unknown_variant_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="`dvc repro subset` makes it"):
        replicate.main("adam", SEED, folder / "nowhere")
    with pytest.raises(InputError, match="no variant adamw"):
        replicate.main("adamw", SEED, folder / "subset")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with pytest.raises(InputError, match="one thread a training, not 2: set OMP_NUM_THREADS=1"):
        replicate.main("adam", SEED, folder / "subset")


@pytest.mark.usefixtures("folder")
@pytest.mark.filterwarnings("ignore:.* found in sys.modules")
def test_other_epochs_than_the_protocols_train_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own handlers
    monkeypatch.setattr(sys, "argv", ["replicate", "adam", str(SEED)])
    with pytest.raises(SystemExit, match=r"train\.epochs: 3: the protocol has 10"):
        runpy.run_module("evidence.replicate", run_name="__main__")


@pytest.mark.filterwarnings("ignore:.* found in sys.modules")
def test_a_table_that_is_there_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(CHECKOUT / "params.yaml", tmp_path)
    write_tables(tmp_path / "evidence/tables")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["replicate", "adam", str(SEED)])
    runpy.run_module("evidence.replicate", run_name="__main__")
    assert "adam-100.csv is there: remove it" in capsys.readouterr().out
    assert Path(".locks/replicate-adam-100").exists()  # Another process would have waited.


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
def test_the_sign_flip_test_and_the_interval_are_scipys(seed: int) -> None:
    differences = np.random.default_rng(seed).normal(0.5, 1, 8)
    expected = permutation_test((differences,), np.mean, permutation_type="samples")
    assert sign_flip([*differences]) == pytest.approx(expected.pvalue)
    interval = ttest_1samp(differences, 0).confidence_interval(0.99)
    assert t_interval([*differences]) == pytest.approx((interval.low, interval.high))


def test_eight_seeds_detect_what_puts_all_on_one_side() -> None:
    # The smallest p-values of 8 seeds are 2/256 and 4/256, so all signs have to be the same.
    assert detectable(8) == pytest.approx(norm.ppf(0.8 ** (1 / 8)), abs=0.03)
    protocol = (CHECKOUT / "evidence/protocol.md").read_text(encoding="utf-8")
    for seeds in (8, 10):
        assert f"\n{seeds} seeds: {detectable(seeds):.1f} standard deviations\n" in protocol


UP = [1.0, 2, 3, 4, 5, 6, 7, 8]
JUDGED = {  # differences, the side claimed, the verdict, p
    "as claimed": (UP, 1, "supported", 2 / 256),
    "as claimed, below": ([-x for x in UP], -1, "supported", 2 / 256),
    "opposite": (UP, -1, "contradicted", 2 / 256),
    "a tie": ([0, *UP[1:]], 1, "undecided", 4 / 256),
    "a tie but for rounding": ([(0.1 + 0.2) - 0.3, *UP[1:]], 1, "undecided", 4 / 256),
    "ties": ([0] * 8, 1, "undecided", 1),
    "one on the other side": ([-0.01, *[5] * 7], 1, "undecided", 4 / 256),
    "diverged": ([math.nan, *UP[1:]], 1, "undecided", None),
    "seven seeds": (UP[:7], 1, "short of the protocol", None),
}


@pytest.mark.parametrize(("differences", "claimed", "verdict", "p"), JUDGED.values(), ids=JUDGED)
def test_a_verdict_takes_all_seeds_on_one_side(
    differences: Sequence[float], claimed: int, verdict: str, p: float | None
) -> None:
    found = judge(differences, claimed)
    assert (found.verdict, found.p) == (verdict, p)


def test_what_stands_beside_a_verdict() -> None:
    assert judge(UP[:7], 1).interval == pytest.approx(t_interval(UP[:7]))
    disagrees = judge([-0.01, *[5] * 7], 1)
    assert disagrees.interval_agrees is False
    assert "| undecided; the interval disagrees |" in of_statements({"1": disagrees}, SEEDS)
    diverged = judge([math.nan, (0.1 + 0.2) - 0.3, *UP[2:]], 1)
    assert (diverged.differences[:2], diverged.mean) == ([None, 0], 33 / 7)
    assert share_above([1, 2, 0, -1]) == 2.5 / 4  # the tie counts half


# Made-up tables of a known answer.


Accuracies = Callable[[str, int, int], dict[str, float]]  # of variant, seed, epoch


def made_up(accuracies: Accuracies) -> dict[int, Block]:
    """Return eight blocks, in which every column is 0.5 unless `accuracies` says otherwise."""
    columns = (*EpochRow.model_fields, *statements.SETTLED, "gradient_conv1", "gradient_conv7")
    usual = dict.fromkeys(columns, 0.5)

    def history(variant: str, seed: int) -> list[EpochRow]:
        return [
            EpochRow.model_validate({**usual, "epoch": epoch, **accuracies(variant, seed, epoch)})
            for epoch in range(1, EPOCHS + 1)
        ]

    return {seed: {variant: history(variant, seed) for variant in VARIANTS} for seed in SEEDS}


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


def write_tables(folder: Path, epochs: int = EPOCHS, **changed: object) -> None:
    """Write the tables of `as_claimed`; adam with seed 103 has so many epochs and what changed."""
    for seed, block in made_up(as_claimed).items():
        for variant, history in block.items():
            training = {"variant": variant, "seed": seed, "batch_size": 64}
            origin: dict[str, object] = {"commit": "c", "learning": "l", "training": training}
            origin |= {"images": {}, "ran_on": {"processor": "p"}}
            rows = [row.model_dump() for row in history]
            if (variant, seed) == ("adam", 103):
                origin, rows = origin | changed, rows[:epochs]
            path = folder / f"{variant}-{seed}.csv"
            record.write(path, rows, record.Record.model_validate(origin))


def written_verdicts(folder: Path, **options: bool) -> Any:
    """Return what the tables in the folder make the verdicts."""
    verdicts.main(folder, folder, **options)
    return json.loads((folder / "verdicts.json").read_text(encoding="utf-8"))


def outcomes(blocks: Mapping[int, Block], variant: str) -> dict[str, str]:
    found = verdicts.judge_predictions([block[variant] for block in blocks.values()])
    return {name: prediction.outcome for name, prediction in found.items()}


def test_what_the_notebook_claims_is_supported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tables(tmp_path)
    found = written_verdicts(tmp_path)
    assert found["seeds"] == [*SEEDS]
    assert {each["verdict"] for each in found["statements"].values()} == {"supported"}
    assert found["statements"]["1"]["mean"] == pytest.approx(10)
    # A step is twice the swing, and 4 of the 9 steps are falls.
    assert found["statements"]["4"]["mean"] == pytest.approx(-100 * 4 / 9 * 2 * (0.1 - 0.02))
    assert found["statements"]["5"]["mean"] > 0
    assert found["predictions"]["sigmoid"]["lag"]["outcome"] == "holds"
    for name in ("statements", "statistics"):
        assert (tmp_path / f"figures/{name}.png").stat().st_size > 10_000
    *_, accuracies, by_epoch = printed = capsys.readouterr().out.split("\n\n")
    assert len(printed) == 5  # tables
    below = "supported | -3.56 points per epoch | -3.57 to -3.54 | 8 of 8 | 0.0078"
    assert f"\n| 2 | Adam falls back less than SGD | {below} |" in printed[0]
    higher = "Sigmoid's accuracy is higher with frozen 19 than with moving 0.1"
    numbers = "supported | 1.50 points | 1.48 to 1.52 | 8 of 8 | 0.0078"
    assert f"\n| 5 | {higher} | {numbers} |" in printed[0]
    assert "\n| 4 learning | Statement 4, from the first epoch above 20 points on |" in printed[1]
    outcomes = "holds | fails | fails | fails | 1.50 points | 1.48 to 1.52 | supported"
    assert f"\n| sigmoid | {outcomes} |" in printed[2]
    assert "\n| sgd | 88.0 | 83.2 | 82.4 | 80.8 | 80.0 | 83.2 | 84.0 | 84.8 | 85.6 |" in accuracies
    # The noise of the middle two of the eight seeds cancels out.
    alternating = " | ".join(["75.0", "85.0"] * 5)
    assert f"\n| sgd | test | {alternating} |" in by_epoch
    assert f"\n|  | gradient norm, conv1 | {' | '.join(['0.5'] * 10)} |" in by_epoch


def test_the_opposite_is_contradicted() -> None:
    blocks = made_up(mirrored)
    found = verdicts.judge_statements(blocks)
    assert {found[name].verdict for name in ("1", "3", "5", "1 frozen")} == {"contradicted"}
    assert found["1"].mean == pytest.approx(-10)
    assert outcomes(blocks, "sigmoid")["lag"] == "fails"


def test_a_diverged_training_leaves_its_statements_undecided() -> None:
    def diverges(variant: str, seed: int, epoch: int) -> dict[str, float]:
        lost = (variant, seed) == ("sgd", 105) and epoch > 4
        numbers = {"train_loss": math.nan, "gradient_conv1": math.inf} if lost else {}
        return as_claimed(variant, seed, epoch) | numbers

    blocks = made_up(diverges)
    found = verdicts.judge_statements(blocks)
    for name, statement in STATEMENTS.items():
        expected = "undecided" if "sgd" in (statement.a[0], statement.b[0]) else "supported"
        assert found[name].verdict == expected
    assert found["1"].differences[5] is None
    assert "| undecided; no difference: seed 105 | 10.00 points" in of_statements(found, SEEDS)
    assert "inf" not in by_epoch([blocks[105], blocks[106]])
    assert outcomes(blocks, "sgd")["lag"] == "open"
    assert outcomes(blocks, "adam")["lag"] == "holds"


def test_there_is_no_verdict_before_all_eight_blocks(tmp_path: Path) -> None:
    write_tables(tmp_path)
    (tmp_path / "sigmoid-104.json").unlink()
    with pytest.raises(InputError, match="7 of 8 blocks, no verdicts"):
        verdicts.main(tmp_path, tmp_path)
    assert not (tmp_path / "verdicts.json").exists()
    found = written_verdicts(tmp_path, short=True)
    assert found["seeds"] == [100, 101, 102, 103, 105, 106, 107]
    said = {(each["verdict"], each["p"]) for each in found["statements"].values()}
    assert said == {("short of the protocol", None)}
    assert len(found["statements"]["1"]["interval"]) == 2
    predicted = found["predictions"]["adam"].values()
    assert {each["outcome"] for each in predicted} == {"short of the protocol"}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"learning": "other"}, "one stages/learning for seed 103: l, other; keep those of"),
        ({"ran_on": {"processor": "q"}}, "more than one machine for seed 103"),
        ({"images": {"test": "other"}}, "more than one subset"),
        ({"training": {"variant": "adam", "batch_size": 32}}, "more than one setting"),
        ({"epochs": 9}, r"adam-103\.csv has not 10 epochs; `git checkout evidence/tables` resto"),
    ],
)
def test_tables_that_do_not_belong_together_are_refused(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    write_tables(tmp_path, **changed)
    with pytest.raises(InputError, match=told):
        verdicts.main(tmp_path, tmp_path)


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
        # Without a gap there is nothing to explain.
        ({**NOISE, **AS_MOVING, "frozen_all": 40, "seen_accuracy": 42}, set()),
    ],
)
def test_the_predictions(accuracies: dict[str, int], holding: set[str]) -> None:
    numbers = {"seen_accuracy": 60, **accuracies}
    found = {
        name: verdicts.outcome([judge([number(numbers)] * 8, 1) for number in conditions.values()])
        for name, conditions in PREDICTIONS.items()
    }
    assert found == {name: "holds" if name in holding else "fails" for name in PREDICTIONS}


def test_the_statistics_of_a_curve() -> None:
    curve = [10.0, 20, 15, 35, 30, 30, 40, 50, 20, 60]
    change = sum(abs(after - before) for before, after in pairwise(curve)) / 9
    assert [each.statistic(curve) for each in STATEMENTS.values()] == pytest.approx(
        [31, 40 / 9, 130 / 3, 40 / 9, 35, 31, 40 / 9, change, 35 / 6, change]
    )
    assert math.isnan(statements.fall_once_learning([10, 15, 30]))
    assert math.isnan(statements.fall_once_learning([10, 15, 20]))


# What is committed.

COMMITTED = sorted((CHECKOUT / "evidence/tables").glob("*.csv"))
VERDICTS = CHECKOUT / "evidence/verdicts.json"
RELU, SIGMOID = ("adam", "sgd"), ("sigmoid", "sigmoid-nodropout")
TEST, CONV1, CONV7 = "test_accuracy", "gradient_conv1", "gradient_conv7"


@pytest.mark.skipif(not COMMITTED, reason="no replicate is committed yet")
def test_the_committed_tables_belong_together_and_come_after_the_protocol() -> None:
    assert {*verdicts.read_blocks(CHECKOUT / "evidence/tables")} <= {*SEEDS}
    if record.checkout_git("rev-parse", "--is-shallow-repository").strip() == "true":
        pytest.skip("a shallow clone lacks the commits")
    protocol = record.checkout_git("log", "-1", "--format=%H", "--", "evidence/protocol.md").strip()
    for path in COMMITTED:
        read = record.read(path)
        assert read is not None, f"{path} has no record"
        record.checkout_git("merge-base", "--is-ancestor", protocol, read[0].commit)


@pytest.mark.skipif(not VERDICTS.exists(), reason="there are no verdicts yet")
def test_the_committed_verdicts_follow_from_the_tables_and_the_page_from_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = json.loads(
        VERDICTS.read_text(encoding="utf-8"), parse_float=lambda text: pytest.approx(float(text))
    )
    short = len(committed["seeds"]) < len(SEEDS)
    verdicts.main(CHECKOUT / "evidence/tables", tmp_path, short)
    again = json.loads((tmp_path / "verdicts.json").read_text(encoding="utf-8"))
    assert again == committed

    page = (CHECKOUT / "docs/evidence.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert all(table.strip() in page for table in printed.split("\n\n"))
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    conclusions = readme.partition("## Are the notebook's conclusions")[2].partition("\n## ")[0]
    said = page.partition("## What an earlier exploration")[0] + conclusions
    assert set(re.findall(r"\d+\.\d+", said)) <= set(re.findall(r"\d+\.\d+", printed))


@pytest.mark.skipif(not VERDICTS.exists(), reason="there are no verdicts yet")
def test_the_words_of_the_page_say_what_the_tables_do() -> None:
    blocks = [*verdicts.read_blocks(CHECKOUT / "evidence/tables").values()]
    of = {
        name: np.array([statement.difference(block) for block in blocks])
        for name, statement in STATEMENTS.items()
    }
    accuracies = {
        variant: {
            column: float(np.mean([statements.settled(block[variant])[column] for block in blocks]))
            for column in statements.SETTLED
        }
        for variant in VARIANTS
    }

    def spans(values: np.ndarray) -> str:
        """Return from what to what the sizes go that are not zero."""
        sizes = np.abs(values[values != 0])
        return f"{sizes.min():.0f} to {sizes.max():.0f}"

    def seeds(met: np.ndarray) -> str:
        return ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")[sum(met)]

    def steps(better: str, worse: str, *variants: str, digits: int = 0) -> str:
        """Return by how many points a column is better than another, by variant."""
        *points, last = (
            f"{accuracies[variant][better] - accuracies[variant][worse]:.{digits}f}"
            for variant in variants or VARIANTS
        )
        return f"{', '.join(points)} and {last}"

    def medians(column: str, epoch: int, *variants: str) -> tuple[str, ...]:
        """Return a column's median over the seeds after an epoch, as the page's table shows it."""
        accuracy = column.endswith("accuracy")
        values = (
            np.median([getattr(block[variant][epoch - 1], column) for block in blocks])
            for variant in variants
        )
        return tuple(f"{100 * x:.1f}" if accuracy else f"{x:.2g}" for x in values)

    def below(column: str) -> str:
        return f"{accuracies['adam'][column] - accuracies['sigmoid'][column]:.0f} points below"

    def interval(variant: str, prediction: str, condition: str) -> str:
        judged = verdicts.judge_predictions([block[variant] for block in blocks])
        found = judged[prediction].conditions[condition].interval
        return "{:.0f} to {:.0f}".format(*found or ())

    decided = ("sgd", "adam", "sigmoid-nodropout")
    adam, sgd = (
        np.mean([statements.curve(block[variant], "test_accuracy") for block in blocks], axis=0)
        for variant in ("adam", "sgd")
    )
    early = 100 * (adam - sgd)[:2].sum() / (adam - sgd).sum()
    norms = {  # of conv1 in the first epoch
        variant: np.array([block[variant][0].gradients["conv1"] for block in blocks])
        for variant in VARIANTS
    }
    per_weight = np.median(norms["sigmoid"]) / 576**0.5
    ninth = np.median(norms["adam"]) / norms["sigmoid-nodropout"].max()
    # The newest batch of moving statistics has 48 images instead of 64.
    noisier = [100 * m**2 * (64 / 48 - 1) / (m / (2 - m)) for m in (1, 0.5, 0.1)]
    sentences = (
        f"all eight seeds, by {-of['1'].mean():.2f} points on average. Neither optimizer",
        f"all eight seeds, by {-of['3'].mean():.2f} points on average. That this is *because",
        f"Adam's mean accuracy was {spans(of['1'])} points below SGD's",
        "The medians are {} and {} points after the first".format(*medians(TEST, 1, *RELU)),
        "epoch, and {} and {} after the last".format(*medians(TEST, 10, *RELU)),
        f"the first two epochs make {early:.0f} % of the mean distance",
        f"Adam fell back more in {seeds(of['2'] > 0)} seeds, and less in {seeds(of['2'] < 0)}.",
        f"Sigmoid was {spans(of['3'])} points below ReLU",
        f"fell back less in {seeds(of['4'] < 0)} seeds, and more in {seeds(of['4'] > 0)}.",
        f"In {seeds(of['5'] > 0)} seeds, frozen statistics did better, by {spans(of['5'])} points.",
        f"In seed {SEEDS[int(np.flatnonzero(of['5'] == 0)[0])]} all statistics give chance",
        f"with {steps('frozen_19', 'moving_0.1', *decided, digits=2)} points on average",
        f"above moving 0.1 by {steps('seen_accuracy', 'moving_0.1', *decided)} points there",
        f"frozen statistics gain {steps('frozen_3', 'frozen_1')} points",
        f"and lose {steps('moving_1', 'moving_0.5', 'sigmoid', 'sigmoid-nodropout')} in the two",
        f"From 0.5 to 0.01, they lose {steps('moving_0.5', 'moving_0.01')}.",
        f"is {below('moving_0.1')} `adam` with moving 0.1, and still {below('frozen_all')} with",
        f"{interval('sigmoid-nodropout', 'both', 'frozen 3 is above moving 0.5')} points, contains",
        f"0.5 ({interval('sigmoid', 'lag', 'frozen 3 is above moving 0.5')} points)",
        f"0.01 ({interval('sigmoid', 'lag', 'moving 0.1 is above moving 0.01')})",
        f"0.1 ({interval('sigmoid', 'noise', 'training mode is above moving 0.1')})",
        "{:.0f}, {:.0f} and {:.0f} % more variance".format(*noisier),
        f"about {100 * 0.8 ** (1 / 8):.0f} of 100 seeds",
        "both sigmoid variants, {} and {} against {}".format(*medians(CONV1, 1, *SIGMOID, "adam")),
        "near chance, {} and {} points.".format(*medians("seen_accuracy", 1, *SIGMOID)),
        "the medians were {} and {}, and".format(*medians(CONV1, 2, *SIGMOID)),
        "to the end: {} and {} against {}.".format(*medians(CONV7, 10, *SIGMOID, "adam")),
        f"is about {per_weight:.0e} for".replace("e-0", "e-"),
        f"some {per_weight / 1e-8:.0f} times epsilon",
        f"from under 1e-5 to a {['eighth', 'ninth', 'tenth'][round(ninth) - 8]} of Adam's median",
    )
    words = " ".join((CHECKOUT / "docs/evidence.md").read_text(encoding="utf-8").split())
    assert [sentence for sentence in sentences if sentence not in words] == []
    readme = " ".join((CHECKOUT / "README.md").read_text(encoding="utf-8").split())
    assert f"accuracy over the ten epochs was {-of['1'].mean():.2f} points lower." in readme
    assert f"accuracy over the last three epochs was {-of['3'].mean():.2f} points lower." in readme
    assert f"it was higher in {sum(of['5'] > 0)} of 8 seeds." in readme
    assert norms["sigmoid-nodropout"].min() < 1e-5
    for of_variant in accuracies.values():
        assert np.ptp([of_variant[name] for name in ("frozen_3", "frozen_19", "frozen_all")]) <= 1
    for variant in ("sgd", "adam"):
        assert abs(accuracies[variant]["moving_1"] - accuracies[variant]["moving_0.5"]) < 1


@pytest.mark.skipif(not VERDICTS.exists(), reason="there are no verdicts yet")
def test_what_the_page_says_of_conditions_and_of_single_trainings_is_so() -> None:
    blocks = verdicts.read_blocks(CHECKOUT / "evidence/tables")
    predicted = {
        variant: verdicts.judge_predictions([block[variant] for block in blocks.values()])
        for variant in VARIANTS
    }

    def of_lag(variant: str, verdict: str) -> set[str]:
        conditions = predicted[variant]["lag"].conditions
        return {words for words, found in conditions.items() if found.verdict == verdict}

    def differences(variant: str, condition: str) -> list[float]:
        found = predicted[variant]["lag"].conditions[condition].differences
        return [x for x in found if x is not None]

    frozen_3, moving_1 = "frozen 3 is above moving 0.5", "moving 1 is above moving 0.5"
    middle, longest = "moving 0.5 is above moving 0.1", "moving 0.1 is above moving 0.01"
    assert of_lag("sgd", "contradicted") == {moving_1}
    assert of_lag("sgd", "undecided") == {frozen_3}
    assert of_lag("adam", "undecided") == {frozen_3, moving_1}
    assert of_lag("sigmoid-nodropout", "undecided") == {moving_1, longest}
    sigmoid = of_lag("sigmoid", "undecided")
    assert len(sigmoid) == len(predicted["sigmoid"]["lag"].conditions) == 5
    assert min(differences("sgd", moving_1)) > -1
    at_106, at_104 = [*blocks].index(106), [*blocks].index(104)
    assert {differences("sigmoid", condition)[at_106] for condition in sigmoid} == {0}
    other_side = {words for words in sigmoid if min(differences("sigmoid", words)) < 0}
    assert other_side == {middle} and differences("sigmoid", middle)[at_104] < 0
    disagreeing = {
        (variant, words.replace("moving 0.01 is above moving 0.1", longest))
        for variant, of_variant in predicted.items()
        for prediction in of_variant.values()
        for words, found in prediction.conditions.items()
        if found.interval_agrees is False
    }
    assert len(disagreeing - {("sigmoid", "frozen 19 is above moving 0.1")}) == 4
    outcomes = {name: {of[name].outcome for of in predicted.values()} for name in PREDICTIONS}
    assert outcomes["noise"] == outcomes["neither"] == {"fails"} and outcomes["both"] == {"open"}

    stuck, late = blocks[106]["sigmoid"], blocks[101]["sigmoid"]
    measured = ["test_accuracy", *MOVING, *FROZEN]
    assert {getattr(row, column) for row in stuck for column in measured} == {0.1}
    first, *others = (row.gradients["conv1"] for row in stuck)
    assert max(others) < 2e-8 and max(others) / 24 < 1e-9 and first / max(others) > 200
    assert min(row.gradients["linear3"] for row in stuck) / (4096 * 10) ** 0.5 > 1e-3
    assert max(row.gradients["conv1"] for row in late[1:3]) < 3e-7
    assert max(row.seen_accuracy for row in late[:4]) < 0.11 and late[-1].seen_accuracy > 0.4


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
