"""Another network in params.yaml trains, evaluates, compares and draws; no code is touched."""

import shutil
from typing import Any

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
    _, *stages = project.lock()["stages"]  # all but the download, in DVC's order
    for stage in stages:
        project.stage_again(stage)

    results, wanted = project.folder, params["network"]
    channels = [width for width in wanted["widths"] if width != "M"]
    layers = [f"conv{n + 1}" for n in range(len(channels))]
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
    assert [layer.out_channels for layer in network if isinstance(layer, nn.Conv2d)] == channels
    units = [layer.out_features for layer in network if isinstance(layer, nn.Linear)]
    assert units == [*wanted["hidden"], 10]
    assert sum(isinstance(layer, nn.Dropout) for layer in network) == len(wanted["hidden"])
    momenta = {layer.momentum for layer in network if isinstance(layer, nn.BatchNorm2d)}
    assert momenta == {wanted["batch_norm_momentum"]}
    return network


def test_vgg13_without_hidden_layers(project: Project) -> None:
    # 64, 64, M, 128, 128, M, 256, 256, M, 512, 512, M, 512, 512, M; each a sixteenth.
    widths = [4, 4, "M", 8, 8, "M", 16, 16, "M", 32, 32, "M", 32, 32, "M"]
    network = run(project, network={"widths": widths, "hidden": []})
    assert [name for name, _ in network.named_children()][:8] == [
        *("pixels", "conv1", "norm1", "activation1", "conv2", "norm2", "pool2", "activation2"),
    ]


def test_four_poolings_of_images_without_padding_one_hidden_layer_and_another_momentum(
    project: Project,
) -> None:
    widths = [8, "M", 8, "M", 8, 8, "M", 16, 16, "M"]
    section = {"widths": widths, "hidden": [24], "batch_norm_momentum": 0.5}
    network = run(project, network=section, data={"pad": 0})
    assert network.get_submodule("linear1").in_features == 16  # 28, 14, 7, 3, 1 pixels
