"""Another network in params.yaml trains, evaluates, compares and draws; no code is touched."""

import shutil
from typing import Any

import pytest
import torch
from torch import nn

from stages.learning.inference import load_images, predict, score
from stages.learning.network import Network
from stages.learning.weights import load_network
from stages.reporting.summary import Summary
from stages.reporting.tables import CurveRow
from stages.support.tables import read_record, read_table
from stages.support.tensors import read_tensors
from tests.conftest import Project

# All stages but the download, as DVC would order them.
STAGES = (
    *("subset", "train@sgd-0", "train@adam-0", "evaluate@sgd", "evaluate@adam"),
    *("compare", "select", "promote"),
)


def run(project: Project, **sections: dict[str, Any]) -> Network:
    """Change sections of params.yaml, run all stages but the download, and check what came of it.

    Returns:
        adam's trained network, read from its weights file alone.
    """
    with project.params() as params:
        for name, section in sections.items():
            params[name] |= section
    for folder in ("models", "metrics"):
        shutil.rmtree(project.folder / folder)
    for name in STAGES:
        stage, *arguments = project.command(name)[3:]
        project.stage(stage, *arguments)

    results, wanted = project.folder, params["network"]
    poolings = wanted["widths"].count("M")
    layers = [f"conv{n + 1}" for n in range(len(wanted["widths"]) - poolings)]
    layers += [f"linear{n + 1}" for n in range(len(wanted["hidden"]) + 1)]
    for table in ("curves.csv", "curves/sgd.csv", "curves/adam.csv", "selected.csv"):
        rows = read_table(results / "metrics" / table, CurveRow)
        assert all([*row.gradients] == layers for row in rows)
        assert all(norm > 0 for row in rows for norm in row.gradients.values())
    drawn = {path.stem for path in results.glob("metrics/figures/*.png")}
    assert drawn == {"modes", "accuracy", "test_accuracy", "gradients", "confusion", "digits"}

    weights = results / "models/adam/0.safetensors"
    assert weights.read_bytes() == (results / "models/selected.safetensors").read_bytes()
    _, description = read_tensors(weights)
    assert description["precision"] in ("fp32", "bf16")
    assert {key: description[key] for key in wanted} == wanted
    for key in ("pad", "scale", "classes"):
        assert description[key] == params["data"][key]

    network = load_network(weights)
    test = load_images(results / "data/subset", "test", torch.device("cpu"))
    summary = read_record(results / "metrics/summary/adam.json", Summary)
    assert score(predict(network, test.images), test.labels).accuracy == summary.accuracy
    channels = [layer.out_channels for layer in network if isinstance(layer, nn.Conv2d)]
    units = [layer.out_features for layer in network if isinstance(layer, nn.Linear)]
    assert channels == [width for width in wanted["widths"] if width != "M"]
    assert units == [*wanted["hidden"], 10]
    return network


def test_a_narrower_vgg11(project: Project) -> None:
    run(project, network={"widths": [2, "M", 4, "M", 8, 8, "M", 16, 16, "M", 16, 16, "M"]})


def test_vgg13(project: Project) -> None:
    # 64, 64, M, 128, 128, M, 256, 256, M, 512, 512, M, 512, 512, M; each a sixteenth.
    widths = [4, 4, "M", 8, 8, "M", 16, 16, "M", 32, 32, "M", 32, 32, "M"]
    network = run(project, network={"widths": widths})
    assert [name for name, _ in network.named_children()][:8] == [
        *("pixels", "conv1", "norm1", "activation1", "conv2", "norm2", "pool2", "activation2"),
    ]


@pytest.mark.parametrize("hidden", [[24], []], ids=str)
def test_other_hidden_units(project: Project, hidden: list[int]) -> None:
    network = run(project, network={"hidden": hidden})
    assert sum(isinstance(layer, nn.Dropout) for layer in network) == len(hidden)


def test_another_momentum_of_the_batch_norms(finished: Project, project: Project) -> None:
    network = run(project, network={"batch_norm_momentum": 0.5})
    before = load_network(finished.folder / "models/adam/0.safetensors").state_dict()
    for name, tensor in network.state_dict().items():
        # Running statistics serve evaluation mode alone, so the same weights are learned.
        assert torch.equal(tensor, before[name]) == ("running" not in name), name
    norms = [layer for layer in network if isinstance(layer, nn.BatchNorm2d)]
    assert {layer.momentum for layer in norms} == {0.5}


def test_four_poolings_of_images_without_padding(project: Project) -> None:
    widths = [8, "M", 8, "M", 8, 8, "M", 16, 16, "M"]
    network = run(project, network={"widths": widths}, data={"pad": 0})
    assert network.get_submodule("linear1").in_features == 16  # 28, 14, 7, 3, 1 pixels
