"""The benchmark's contenders compute the same, and what it measures is told and drawn."""

import json
import multiprocessing
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from dvc.repo import Repo  # type: ignore[import-untyped]

from bench import __main__ as command
from bench import cold, contenders, epoch, gpu, layers, pipeline, saving, scaling, workers
from bench.contenders import CONTENDERS, NETWORK, ROAD
from bench.report import draw, tables
from stages.learning.inference import Images
from stages.learning.loop import set_seed
from stages.learning.network import layers_with_weights, vgg
from stages.learning.split import SPLITS, Split, save_split
from stages.support.errors import InputError
from stages.support.params import CLASSES, Architecture
from tests.conftest import CHECKOUT, TINY, Project

pytestmark = pytest.mark.filterwarnings("ignore:_NoneStep")  # in DVC's own code


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the contenders train a tiny network, without dropout, which no two draw alike."""
    monkeypatch.setattr(contenders, "NETWORK", Architecture.model_validate(TINY))
    monkeypatch.setattr(contenders, "ADAM", contenders.ADAM.model_copy(update={"dropout": 0.0}))
    monkeypatch.setattr(contenders, "PEAK_SIDE", 64)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, to work in, with 20 images a split."""
    images = np.random.default_rng(0).integers(0, 256, (20, 1, 32, 32), np.uint8)
    split = Split(images, labels=np.repeat(np.arange(10), 2), index=np.arange(20))
    for name in SPLITS:
        save_split(tmp_path / f"data/subset/{name}.safetensors", split)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    return tmp_path


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("name", [name for name in CONTENDERS if not name.startswith("peak")])
def test_every_contender_computes_and_learns_what_the_notebooks_loop_does(name: str) -> None:
    def losses(name: str) -> tuple[float, float]:
        set_seed(0, epoch=0)
        labels = torch.arange(40) % 10  # one batch
        brightness = 10 + 25 * labels[:, None, None, None]
        images = torch.randint(0, 256, (40, 1, 32, 32)) * brightness // 256
        set_seed(0, epoch=0)  # decides the first weights
        train, evaluate = cast(Any, CONTENDERS[name](Images(images.to(torch.uint8), labels)))
        _, before = evaluate()
        for _ in range(10):  # in more steps, Adam makes much of another rounding
            train()
        _, after = evaluate()
        return before, after

    (before, after), (expected_before, expected_after) = losses(name), losses("notebook")
    assert before == pytest.approx(expected_before, rel=1e-4)
    rel = 0.2 if "bf16" in name else 0.1
    assert after - before == pytest.approx(expected_after - expected_before, rel=rel)


def test_operations_are_those_of_the_notebooks_layers() -> None:
    train, evaluate = epoch.operations()
    side, units, forward = 32, 1, [0]
    for width in NETWORK.widths:
        if width == "M":
            side //= 2
        else:
            forward.append(2 * 9 * units * width * side**2)
            units = width
    for width in (*NETWORK.hidden, CLASSES):
        forward.append(2 * units * width)
        units = width
    assert evaluate == sum(forward)
    assert train == 3 * sum(forward) - forward[1]  # nobody needs the gradient of the pixels


@pytest.mark.usefixtures("small")
def test_a_worker_measures_and_its_death_is_told() -> None:
    ended = pytest.raises(InputError, match="process that measures has ended, one of: peak fp32")
    with ended, workers.running(("peak fp32", 20, 1)) as (worker,):
        [[train, evaluate]] = workers.in_turns([worker], rounds=1)
        assert train > 10 * evaluate > 0  # five large products, and nothing
        assert workers.ask("memory", worker) >= workers.ask("before", worker) > [10**8]
        [process] = multiprocessing.active_children()
        process.kill()
        workers.ask("train", worker)


def fake_epochs(names: list[str], images: int, rounds: int) -> dict[str, dict[str, float]]:
    """Let the first of the contenders take 64 seconds, and each other half of the one before."""
    return {
        name: {"train_seconds": 48 / 2**position, "epoch_seconds": 64 / 2**position}
        for position, name in enumerate(names)
    }


def test_contenders_are_compared_with_the_notebook_and_steps_with_the_one_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(epoch, "epochs", fake_epochs)
    monkeypatch.setattr(epoch, "precisions", lambda: ["fp32"])
    results = epoch.compare(3000, 1)
    contenders = results["contenders"]
    train, evaluate = epoch.operations()
    # Twice the images that were multiplied for: an epoch has 6000.
    assert results["peak_flops"] == {"fp32": 2 * 5 * 2 * 2048**3 / 6}
    assert [*contenders] == ["notebook", "DataLoader", "pipeline fp32"]
    assert [row["ratio"] for row in contenders.values()] == [1, 2, 4]
    for row in contenders.values():
        assert row["flops"] * row["epoch_seconds"] == pytest.approx(6000 * (train + 2 * evaluate))
        assert row["fraction_of_peak"] == row["flops"] / results["peak_flops"]["fp32"]
    steps = epoch.road(3000, 1)
    assert [*steps] == ["notebook", *ROAD, "pipeline fp32"]
    assert [row["ratio"] for row in steps.values()] == [1] + [2] * 9


def test_the_committed_results_are_told_and_drawn() -> None:
    results = json.loads((CHECKOUT / "bench/results.json").read_text(encoding="utf-8"))
    printed, [axes] = tables(results), draw(results).axes
    labels = [text.get_text() for text in axes.texts]
    for name, row in results["contenders"].items():
        assert f"\n| {name} | {row['train_seconds']:.1f} s | " in printed
        assert f"{row['epoch_seconds']:.1f} s, {row['ratio']:.2f} times as fast" in labels
    for step, row in results["road"].items():
        assert f"\n| {step} | {row['epoch_seconds']:.1f} s | {row['ratio']:.2f} | " in printed
    measured, rounds = results["images"], results["rounds"]
    assert f"6000 images extrapolated from {measured}, with Adam, median of {rounds}" in printed
    for size, seconds in results["growth"].items():
        assert f"{size} images: {seconds:.2f} s" in printed
    assert f"; ratio {results['side_by_side']['ratio']:.2f}." in printed
    gigabytes = results["whole_epoch_memory_bytes"]["notebook"] / 1e9
    assert f"Memory in an epoch of 6000 images: notebook {gigabytes:.2f} GB" in printed


@pytest.mark.slow
def test_all_is_measured_tabulated_and_drawn(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    arguments = [sys.executable, "-m", "bench", "--images", "20", "--rounds", "1", "--write"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads((small / "bench/results.json").read_text(encoding="utf-8"))
    assert {"notebook", "DataLoader", "pipeline fp32"} <= results["contenders"].keys()
    for name, row in results["contenders"].items():
        assert f"\n| {name} | {row['train_seconds']:.1f} s | " in done.stdout
        assert row["epoch_seconds"] == row["train_seconds"] + row["evaluate_seconds"] > 0
    assert [*results["growth"]] == ["5", "10", "20"]
    assert results["side_by_side"]["ratio"] > 0
    assert (small / "bench/results.png").read_bytes().startswith(b"\x89PNG")


def test_the_committed_results_stay_unless_they_are_to_be_written(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    results = (CHECKOUT / "bench/results.json").read_text(encoding="utf-8")
    monkeypatch.setattr(epoch, "compare", lambda *_: json.loads(results))
    monkeypatch.setattr(epoch, "growth", lambda *_: {"5": 0.1})
    monkeypatch.setattr(sys, "argv", ["bench", "--images", "20"])
    command.main()
    assert "| notebook |" in capsys.readouterr().out
    assert not (small / "bench").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_memory_is_that_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epoch, "IMAGES", 20)
    held = epoch.whole_epoch_memory(["pipeline fp32"])
    weights_gradients_and_moments = 4 * 4 * 28_148_362  # bytes, for Adam
    assert [*held] == ["pipeline fp32", "before"]
    assert held["pipeline fp32"] > held["before"] + weights_gradients_and_moments


@pytest.mark.usefixtures("tiny", "small")
def test_a_step_is_timed_layer_by_layer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layers, "TURNS", 1)
    monkeypatch.setattr(layers, "BATCH", 20)
    layers.main()
    printed = capsys.readouterr().out
    rows = re.findall(r"\| (\w+) \| ([\d.]+) ms \| \d+ \| ([\d.]+) ms \| \d+ \|", printed)
    names = [*layers_with_weights(vgg(contenders.NETWORK, 32, "relu", 0.5, "none", "fp32"))]
    assert [name for name, *_ in rows] == names * len(epoch.precisions())
    timed = [float(passed) for _, *passes in rows for passed in passes]
    timed += map(float, re.findall(r"(?:weights|Optimizer): ([\d.]+) ms", printed))
    total = sum(map(float, re.findall(r"Sum: (\d+) ms", printed)))
    assert total == pytest.approx(sum(timed), abs=4)


@pytest.mark.usefixtures("tiny")
def test_what_saving_costs_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(saving, "STEPS", 1)
    monkeypatch.setattr(saving, "TURNS", 2)
    saving.main()
    printed = capsys.readouterr().out
    assert printed.startswith("block 1 of 2, saved\nblock 2 of 2, saved\nA checkpoint of Adam (")
    assert re.search(r"[\d.]+ s instead of [\d.]+ s .* is -?[\d.]+% of an epoch's \d+ s", printed)
    assert [path.name for path in tmp_path.rglob("*")] == [".checkpoints"]


@pytest.mark.slow
def test_what_dvc_and_the_subset_take_is_told_unless_something_is_to_do(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "TURNS", 1)
    monkeypatch.chdir(project.folder)
    pipeline.main()
    printed = capsys.readouterr().out
    assert re.search(r"nothing to do: [\d.]+ s; .* as many stages, 9: [\d.]+ s; ratio \d", printed)
    assert re.search(r"The subset of all images of data/raw: [\d.]+ s, [1-9]\d* MB", printed)
    assert project.stale() == set()
    with project.params() as params:
        params["variant"] = "sgd"
    with pytest.raises(InputError, match="there is something to do"):
        pipeline.main()


@pytest.mark.parametrize("files", [1, 10])
def test_a_large_graph_has_the_shape_of_the_pipeline(
    files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # DVC names stages as seen from here
    scaling.write_graph(tmp_path, 2, files)
    with Repo(str(tmp_path)) as repo:
        graph = repo.index.graph
        needs = {stage.addressing: [need.addressing for need in graph[stage]] for stage in graph}
    assert len({stage.partition(":")[0] for stage in needs if ":train@" in stage}) == files
    trainings = [stage for stage in needs if ":train@" in stage]
    evaluations = [stage for stage in needs if ":evaluate@" in stage]
    assert (len(needs), len(trainings), len(evaluations)) == (32, 20, 10)
    assert all(needs[training] == ["subset"] for training in trainings)
    assert sorted(needs["compare"]) == sorted(evaluations)
    first = "variants/v0/dvc.yaml"  # where `tools.mend`, whose time is told, looks for dvc.lock
    assert sorted(needs[f"{first}:evaluate@v0"]) == [f"{first}:train@v0-{seed}" for seed in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "run"), [("5", r"0 s \| [\d.]+ s"), ("0", r"- \| -")])
def test_what_a_large_graph_takes_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], jobs: str, run: str
) -> None:
    monkeypatch.setattr(scaling, "SLEEP", 0)
    monkeypatch.setattr(scaling, "TURNS", 1)
    monkeypatch.setattr(sys, "argv", ["bench.scaling", "10", jobs, "1"])
    scaling.main()
    seconds = r"(\| [\d.]+ s ){3}"
    row = rf"\| 10 \| 22 \| 1 \| {jobs} {seconds}\| {run} {seconds}\| \d+ kB \|\n"
    assert re.fullmatch(row, capsys.readouterr().out)


@pytest.mark.parametrize(
    ("main", "options", "answer"),
    [
        (command.main, ["--images", "3"], "--images must be at least 4"),
        (command.main, ["--rounds", "0"], "--rounds at least 1"),
        (command.main, ["--images", "21"], "data/subset has 20 training images, 21 are wanted"),
        (command.main, ["--images", "20", "--memory"], "has 20 training images, 6000 are wanted"),
        (scaling.main, ["15", "1", "1"], "trainings come in multiples of 10, jobs from 0"),
        (scaling.main, ["10", "-1", "1"], "trainings come in multiples of 10, jobs from 0"),
    ],
)
def test_a_wrong_option_is_answered(
    main: Callable[[], None],
    options: list[str],
    answer: str,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", *options])
    with pytest.raises((InputError, SystemExit)) as raised:
        main()
    assert answer in f"{raised.value}{capsys.readouterr().err}"
    assert not (small / "bench").exists()


@pytest.mark.slow
def test_what_a_cold_run_takes_is_told(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.folder)
    before = project.digests()
    cold.main()
    told = re.fullmatch(
        r"`dvc repro` of everything with 2 epochs: (\d+) s, of which epochs (\d+) s, the passes of "
        r"`evaluate` ([\d.]+) s, and the rest ([\d.]+) s. Of a run with 2 epochs the rest is "
        r"([\d.]+)%.\n",
        capsys.readouterr().out,
    )
    assert told
    whole, epochs, passes, rest, share = map(float, told.groups())
    assert epochs + passes + rest == pytest.approx(whole, abs=2)
    assert share == pytest.approx(100 * rest / whole, abs=5)
    assert project.digests() == before


@pytest.mark.slow
def test_what_a_gpu_is_worth_is_told_and_the_script_works_without_one(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(gpu, "VARIANTS", ("sgd",))
    monkeypatch.setattr(gpu, "PRECISIONS", ("bf16",))
    monkeypatch.setattr(sys, "argv", ["bench.gpu", "--device", "cpu"])
    gpu.main()
    *_, row = capsys.readouterr().out.splitlines()
    seconds = r"\| [\d.]+ s \| [\d.]+ \| [\d.]+ "
    assert re.fullmatch(rf"\| bf16 \| sgd \| [01]\.\d+ {seconds}\| yes \| yes \|", row)
    with project.params() as params:
        params["train"]["epochs"] = 1
    with pytest.raises(InputError, match=r"train\.epochs: 2 or more"):
        gpu.main()
    if not torch.cuda.is_available():
        monkeypatch.setattr(sys, "argv", ["bench.gpu"])
        with pytest.raises(InputError, match="finds no GPU"):
            gpu.main()
