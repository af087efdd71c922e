"""The benchmark's contenders compute the same, and it measures and shows them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bench import layers, measure, pipeline
from bench.contenders import ROAD, Notebook, Step, plain_network
from bench.measure import operations
from stages.lib.command import InputError
from stages.lib.evaluation import Tensors
from stages.lib.network import CONVOLUTIONS, HIDDEN, layers_with_weights, vgg11
from stages.lib.params import CLASSES
from stages.lib.subset import SPLITS, choose, save_split
from stages.lib.training import set_seed
from tests.conftest import CHECKOUT, Project


def split() -> Tensors:
    """Return random images and labels."""
    set_seed(0, epoch=0)
    images = torch.randint(0, 256, (6, 1, 32, 32), dtype=torch.uint8)
    return Tensors(images, torch.arange(6))


@torch.no_grad()
def require_same(plain: nn.Module, other: nn.Module, images: torch.Tensor) -> None:
    """Give the other network the plain one's weights, and compare the logits."""
    weights = plain.state_dict().values()
    other.load_state_dict(dict(zip(other.state_dict(), weights, strict=True)))
    expected = plain.eval()(images.float())
    assert torch.allclose(other.eval()(images), expected, rtol=1e-4, atol=1e-4)


def test_the_plain_network_is_the_pipelines() -> None:
    require_same(plain_network(), vgg11("relu", 0.5, "none"), split().images)


@pytest.mark.parametrize("steps", range(len(ROAD) + 1))
def test_every_step_of_the_road_computes_what_the_notebook_does(steps: int) -> None:
    data = split()
    notebook, step = Notebook(data), Step(data, steps)
    require_same(notebook.network, step.network, step.images)
    score = notebook.evaluate(), step.evaluate()
    accuracy, loss = score[1] if isinstance(score[1], tuple) else vars(score[1]).values()
    assert (accuracy, loss) == pytest.approx(score[0], rel=1e-4)


def test_operations_are_those_of_the_notebooks_layers() -> None:
    train, evaluate = operations()
    side, width, forward, first = 32, 1, 0, 0
    for channels, pooled in CONVOLUTIONS:
        forward += 2 * 9 * width * channels * side**2
        first = first or forward
        width, side = channels, side // 2 if pooled else side
    for units in (*HIDDEN, CLASSES):
        forward += 2 * width * units
        width = units
    assert evaluate == forward
    assert train == 3 * forward - first  # nobody needs the gradient of the pixels


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, to work in, with 20 images a split."""
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 2)
    for name in SPLITS:
        chosen = choose(name, images, labels, [*range(10)], 2, 2)
        save_split(tmp_path / f"data/subset/{name}.safetensors", chosen)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [sys.executable, "-m", "bench", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_it_measures_tabulates_and_draws(small: Path) -> None:
    done = bench("--images", "20", "--rounds", "1")
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads((small / "bench/results.json").read_text(encoding="utf-8"))
    contenders = results["contenders"]
    assert {"notebook", "DataLoader", "pipeline fp32"} <= contenders.keys()
    train, evaluate = operations()
    for name, row in contenders.items():
        assert f"\n| {name} | {row['train_seconds']:.1f} s | " in done.stdout
        assert row["epoch_seconds"] == row["train_seconds"] + row["evaluate_seconds"] > 0
        assert row["flops"] * row["epoch_seconds"] == pytest.approx(6000 * (train + 2 * evaluate))
        peak = results["peak_flops"]["bf16" if "bf16" in name else "fp32"]
        assert row["fraction_of_peak"] == pytest.approx(row["flops"] / peak)
    assert [*results["growth"]] == ["5", "10", "20"]
    assert "an epoch of 6000 images extrapolated from 20, with Adam, median of 1" in done.stdout
    assert (small / "bench/results.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("small")
def test_memory_is_that_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "IMAGES", 20)
    held = measure.whole_epoch_memory(["pipeline fp32"])
    weights_gradients_and_moments = 4 * 4 * 28_148_362  # bytes, for Adam
    assert [*held] == ["pipeline fp32", "before"]
    assert held["pipeline fp32"] > held["before"] + weights_gradients_and_moments


def test_a_step_is_timed_layer_by_layer(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(layers, "TURNS", 1)
    monkeypatch.setattr(layers, "BATCH", 4)
    layers.main()
    printed = capsys.readouterr().out
    rows = re.findall(r"\| (\w+) \| ([\d.]+) ms \| \d+ \| ([\d.]+) ms \| \d+ \|", printed)
    names = [*layers_with_weights(vgg11("relu", 0.5, "none"))]
    assert [name for name, *_ in rows] == names * len(measure.precisions())
    timed = [float(passed) for _, *passes in rows for passed in passes]
    timed += map(float, re.findall(r"(?:weights|Optimizer): ([\d.]+) ms", printed))
    total = sum(map(float, re.findall(r"Sum: (\d+) ms", printed)))
    assert total == pytest.approx(sum(timed), abs=4)


def test_what_dvc_and_the_subset_take_is_told_if_nothing_is_left_to_do(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "TURNS", 1)
    monkeypatch.chdir(project.folder)
    pipeline.main()
    told = capsys.readouterr().out
    assert re.search(r"nothing to do: [\d.]+ s; .* as many stages, 9: [\d.]+ s; ratio \d", told)
    assert re.search(r"The subset of all images of data/raw: [\d.]+ s, [1-9]\d* MB", told)
    assert project.repro() == []
    with project.params() as params:
        params["variant"] = "sgd"
    with pytest.raises(InputError, match="there is something to do"):
        pipeline.main()


@pytest.mark.parametrize(
    ("options", "code", "answer"),
    [
        (["--images", "21"], 1, "data/subset has 20 training images, 21 are wanted"),
        (["--images", "20", "--memory"], 1, "has 20 training images, 6000 are wanted"),
        (["--images", "3"], 2, "--images must be at least 4"),
        (["--rounds", "0"], 2, "--rounds at least 1"),
        (["--images", "all"], 2, "invalid int value: 'all'"),
    ],
)
def test_a_wrong_option_is_answered(
    options: list[str], code: int, answer: str, small: Path
) -> None:
    done = bench(*options)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert answer in done.stderr
    assert not (small / "bench").exists()
