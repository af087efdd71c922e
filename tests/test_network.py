"""The network is the notebook's, and a training is a function of seed and epoch."""

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import nn

from stages.learning import device
from stages.learning.device import choose_precision
from stages.learning.history import EpochRow
from stages.learning.inference import Images, predict, predict_with_batch_statistics, score
from stages.learning.kernels import Dropout
from stages.learning.loop import make_optimizer, set_seed, train
from stages.learning.network import Network, layers_with_weights, vgg
from stages.learning.weights import load_network, save_weights
from stages.support import machine
from stages.support.errors import InputError
from stages.support.params import CLASSES, Activation, Architecture, Precision, Scale, Variant
from tests.conftest import TINY

ADAM = Variant(activation="relu", dropout=0.5, optimizer="adam", lr=0.001)
SIDE = 32  # pixels of a side of the images here
VGG11 = Architecture(
    widths=[64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    hidden=[4096, 4096],
    batch_norm_momentum=0.1,
)
# Of the notebook: shapes of the weights, and where a 2x2 pooling follows the layer.
CONVOLUTIONS = [(64, 1), (128, 64), (256, 128), (256, 256), (512, 256), *[(512, 512)] * 3]
POOLED = [True, True, False, True, False, True, False, True]
LINEAR = [(4096, 512), (4096, 4096), (10, 4096)]

tiny = partial(vgg, Architecture.model_validate(TINY), SIDE)


@pytest.mark.parametrize(("activation", "kind"), [("relu", nn.ReLU), ("sigmoid", nn.Sigmoid)])
def test_the_layers_of_vgg11_are_the_notebooks(
    activation: Activation, kind: type[nn.Module]
) -> None:
    with torch.device("meta"):  # shapes without numbers
        network = vgg(VGG11, SIDE, activation, 0.5, "none", "fp32")
    layers = list(network.children())[1:]  # without the pixels' scale
    for shape, pooled in zip(CONVOLUTIONS, POOLED, strict=True):
        convolution, norm, *layers = layers
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        assert convolution.weight.shape == (*shape, 3, 3)
        assert convolution.stride == convolution.padding == (1, 1)
        assert convolution.bias is not None
        assert convolution.weight.is_contiguous(memory_format=torch.channels_last)
        assert (norm.momentum, norm.eps) == (0.1, 1e-5)
        if pooled:  # before the activation, with which it commutes
            pool, *layers = layers
            assert isinstance(pool, nn.MaxPool2d) and (pool.kernel_size, pool.stride) == (2, 2)
        follows, *layers = layers
        assert isinstance(follows, kind)
    kinds = [nn.Flatten, nn.Linear, kind, Dropout, nn.Linear, kind, Dropout, nn.Linear]
    assert [type(layer) for layer in layers] == kinds
    shapes = [layer.weight.shape for layer in layers if isinstance(layer, nn.Linear)]
    assert shapes == LINEAR
    assert {layer.p for layer in layers if isinstance(layer, nn.Dropout)} == {0.5}
    expected = sum(9 * out * into + 3 * out for out, into in CONVOLUTIONS)  # bias and norm's two
    expected += sum(out * into + out for out, into in LINEAR)
    assert sum(weights.numel() for weights in network.parameters()) == expected == 28_148_362


@pytest.mark.parametrize(
    ("scale", "expected"), [("none", [0, 51, 255]), ("unit", [0, 0.2, 1]), ("half", [-1, -0.6, 1])]
)
def test_pixels_are_scaled_as_named(scale: Scale, expected: list[float]) -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    seen = next(tiny("relu", 0, scale, "fp32").children())(pixels)
    assert seen.dtype == torch.float32
    assert torch.allclose(seen, torch.tensor(expected, dtype=torch.float32))


def split(count: int, seed: int) -> Images:
    """Return random images and labels."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 1, SIDE, SIDE), dtype=np.uint8)
    return Images(torch.from_numpy(images), torch.from_numpy(random.integers(0, CLASSES, count)))


def test_bf16_multiplies_in_bfloat16_all_but_the_last_layer_and_keeps_weights_in_float32() -> None:
    set_seed(0, epoch=0)
    network = tiny("relu", 0, "none", "bf16")
    full = tiny("relu", 0, "none", "fp32")
    full.load_state_dict(network.state_dict())
    seen: list[torch.dtype] = []
    for layer in layers_with_weights(network).values():
        layer.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    images = split(6, 0).images
    logits = network(images)
    assert set(seen[:-1]) == {torch.bfloat16}
    assert seen[-1] == logits.dtype == torch.float32
    assert {weights.dtype for weights in network.parameters()} == {torch.float32}
    difference = (logits - full(images)).abs().max() / full(images).abs().max()
    assert 0 < difference < 0.05


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True}, "fp32"),
        ({"avx512_bf16": False, "amx_bf16": False}, "fp32"),
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"neon": True, "bf16": True}, "bf16"),
    ],
)
def test_auto_is_bf16_where_the_processor_multiplies_it(
    capabilities: dict[str, bool], expected: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu) == expected
    assert choose_precision("auto", torch.device("mps")) == "fp32"
    for named in get_args(Precision):
        assert choose_precision(named, cpu) == named
    told = str(machine.describe(cpu)["instructions"]).split(" ")
    assert told[0] == torch.backends.cpu.get_cpu_capability()
    assert told[1:] == [name for name in capabilities if expected == "bf16" and name != "neon"]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return what pretends that this version of torch is installed, where 2.14.1 is pinned."""
    monkeypatch.setattr(device, "PYPROJECT", tmp_path / "pyproject.toml")
    text = '[dependency-groups]\npinned = ["torch==2.14.1"]\nall = [{include-group = "pinned"}]\n'
    device.PYPROJECT.write_text(text, encoding="utf-8")
    return lambda installed: monkeypatch.setattr(device, "version", {"torch": installed}.get)


@pytest.mark.parametrize("installed", ["2.14.1", "2.14.1+cu130", "2.14.1+cpu"])
def test_the_pinned_version_is_accepted_with_any_local_part(
    installed: str, install: Callable[[str], None]
) -> None:
    install(installed)
    assert device.set_up_device("cpu").type == "cpu"


@pytest.mark.parametrize("installed", ["2.14.0", "2.14.10", "2.14.1.post1", "2.14.1rc1", "3.0"])
def test_another_version_than_the_pinned_is_refused_in_one_line_with_the_remedy(
    installed: str, install: Callable[[str], None]
) -> None:
    install(installed)
    with pytest.raises(InputError) as caught:
        device.set_up_device("cpu")
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"pyproject.toml pins torch==2.14.1, but {installed} is installed: ")
    assert "`make env`" in line and "[dependency-groups] pinned" in line and "`dvc repro`" in line


def trained(
    seed: int, spans: list[range], precision: Precision = "fp32"
) -> tuple[Network, list[EpochRow]]:
    """Train on a few random images, in one go for each span of epochs."""
    set_seed(seed, epoch=0)
    network = tiny("relu", 0.5, "none", precision)
    optimizer = make_optimizer(network, ADAM)
    splits = {"train": split(10, 0), "test": split(6, 1)}
    rows: list[EpochRow] = []
    for span in spans:
        rows += train(network, optimizer, splits, seed, span, batch_size=4)
        torch.rand(7)  # whatever else draws random numbers between two epochs
    return network, rows


@pytest.mark.parametrize("precision", get_args(Precision))
def test_the_same_seed_gives_the_same_bits_in_one_go_or_not(precision: Precision) -> None:
    whole, rows = trained(3, [range(1, 4)], precision)
    parts, same_rows = trained(3, [range(1, 2), range(2, 3), range(3, 4)], precision)
    assert rows == same_rows
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    _, (of_another_seed,) = trained(4, [range(1, 2)], precision)
    assert of_another_seed != rows[0]


def test_every_seed_and_every_epoch_draws_its_own_numbers() -> None:
    drawn = set()
    for seed, epoch in product(range(3), range(4)):
        set_seed(seed, epoch)
        drawn.add(tuple(torch.randperm(50).tolist()))
    assert len(drawn) == 12


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_the_optimizer_is_the_variants(momentum: float) -> None:
    network = tiny("relu", 0, "none", "fp32")
    sgd = Variant(activation="relu", dropout=0, optimizer="sgd", lr=0.25, momentum=momentum)
    (group,) = make_optimizer(network, sgd).param_groups
    assert (group["lr"], group["momentum"]) == (0.25, momentum)
    assert group["weight_decay"] == group["dampening"] == 0 and not group["nesterov"]
    adam = make_optimizer(network, ADAM)
    assert isinstance(adam, torch.optim.Adam)
    (group,) = adam.param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (0.001, (0.9, 0.999), 1e-8)
    assert group["weight_decay"] == 0 and not group["amsgrad"]


def test_a_row_holds_what_was_seen_and_a_norm_per_layer_with_weights() -> None:
    network, rows = trained(0, [range(1, 2)])
    layers = layers_with_weights(network)
    assert list(layers) == [f"conv{n}" for n in range(1, 9)] + [f"linear{n}" for n in (1, 2, 3)]
    assert list(rows[0].gradients) == list(layers)
    assert list(rows[0].model_dump())[-11:] == [f"gradient_{name}" for name in layers]
    assert all(norm > 0 for norm in rows[0].gradients.values())
    test = split(6, 1)
    result = score(predict(network, test.images), test.labels)
    assert (rows[0].test_accuracy, rows[0].test_loss) == (result.accuracy, result.loss)


def test_gradient_norms_are_the_mean_over_the_steps() -> None:
    set_seed(0, epoch=0)
    network = tiny("relu", 0, "none", "fp32")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)  # every step sees the same weights
    data = split(8, 0)
    (row,) = train(network, optimizer, {"train": data, "test": data}, 0, range(2, 3), batch_size=4)
    set_seed(0, epoch=2)
    order = torch.randperm(8)
    norms, losses = [], []
    network.train()
    for batch in (order[:4], order[4:]):
        network.zero_grad()
        loss = nn.functional.cross_entropy(network(data.images[batch]), data.labels[batch])
        torch.autograd.backward(loss)
        gradient = layers_with_weights(network)["conv5"].weight.grad
        assert gradient is not None
        norms.append(gradient.double().square().sum().sqrt().item())
        losses.append(loss.item())
    assert row.gradients["conv5"] == pytest.approx(sum(norms) / 2, rel=1e-4)
    assert row.seen_loss == pytest.approx(sum(losses) / 2, rel=1e-4)


def test_batch_statistics_are_those_of_the_batch_and_dropout_is_off() -> None:
    set_seed(0, epoch=0)
    network = tiny("relu", 0.5, "none", "fp32")
    images = split(12, 0).images
    in_evaluation_mode = predict(network, images)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    without_dropout = tiny("relu", 0, "none", "fp32")
    without_dropout.load_state_dict(network.state_dict())
    without_dropout.train()
    with torch.inference_mode():
        expected = {
            int(i): row
            for batch in torch.split(order, 5)
            for i, row in zip(batch, without_dropout(images[batch]), strict=True)
        }
    logits = predict_with_batch_statistics(network, images, batch_size=5)
    for index, row in expected.items():
        assert torch.equal(logits[index], row.double())
    assert not torch.allclose(logits, in_evaluation_mode)


DESCRIBED: dict[str, Any] = {  # as `train` describes a training of the tiny network
    **{"per_class": 4, "pad": 2, "classes": [3, 5, 8], "scale": "none"},
    **TINY,
    **{"optimizer": "sgd", "lr": 0.01, "momentum": 0.9},
    **{"activation": "relu", "dropout": 0.5, "precision": "fp32"},
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("activation", "tanh"),
        ("dropout", 2),
        ("scale", "full"),
        ("precision", "fp64"),
        ("widths", [8, 8]),
        ("hidden", [16]),
        ("pad", 18),
        ("pad", "2"),
        ("batch_norm_momentum", 2),
    ],
)
def test_weights_of_another_network_are_refused(key: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    lacking = {name: found for name, found in DESCRIBED.items() if name != key}
    for description in (DESCRIBED | {key: value}, lacking):
        save_weights(path, tiny("relu", 0.5, "none", "fp32"), description)
        with pytest.raises(InputError) as caught:
            load_network(path)
        (line,) = str(caught.value).splitlines()
        assert line.startswith(f"{path}: does not hold our network ") and "`dvc repro`" in line
