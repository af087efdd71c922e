"""The network is the notebook's, and a training is a function of seed and epoch."""

import re
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from stages.lib import machine
from stages.lib.command import InputError
from stages.lib.device import choose_precision
from stages.lib.evaluation import Tensors, predict, predict_with_batch_statistics, score
from stages.lib.network import Convolution, Dropout, _small, layers_with_weights, vgg11
from stages.lib.params import CLASSES, Activation, Precision, Scale, Variant
from stages.lib.tensorfile import write_tensors
from stages.lib.training import EpochRow, make_optimizer, set_seed, train
from stages.lib.weights import load_network, save_weights

ADAM = Variant(activation="relu", dropout=0.5, optimizer="adam", lr=0.001)
# Of the notebook: shapes of the weights, and where a 2x2 pooling follows the layer.
CONVOLUTIONS = [(64, 1), (128, 64), (256, 128), (256, 256), (512, 256), *[(512, 512)] * 3]
POOLED = [True, True, False, True, False, True, False, True]
LINEAR = [(4096, 512), (4096, 4096), (10, 4096)]


@pytest.mark.parametrize(("activation", "kind"), [("relu", nn.ReLU), ("sigmoid", nn.Sigmoid)])
def test_the_layers_are_the_notebooks(activation: Activation, kind: type[nn.Module]) -> None:
    layers = list(vgg11(activation, 0.5, "none").children())[1:]  # without the pixels' scale
    for shape, pooled in zip(CONVOLUTIONS, POOLED, strict=True):
        convolution, norm, *layers = layers
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        assert convolution.weight.shape == (*shape, 3, 3)
        assert convolution.stride == convolution.padding == (1, 1)
        assert convolution.bias is not None
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


def test_the_parameter_count_is_the_notebooks() -> None:
    expected = sum(9 * out * into + 3 * out for out, into in CONVOLUTIONS)  # bias and norm's two
    expected += sum(out * into + out for out, into in LINEAR)
    count = sum(parameter.numel() for parameter in vgg11("relu", 0, "none").parameters())
    assert count == expected == 28_148_362


def test_no_dropout_means_no_such_layer() -> None:
    assert not [x for x in vgg11("sigmoid", 0, "none").children() if isinstance(x, nn.Dropout)]


@pytest.mark.parametrize(
    ("scale", "expected"), [("none", [0, 51, 255]), ("unit", [0, 0.2, 1]), ("half", [-1, -0.6, 1])]
)
def test_pixels_are_scaled_as_named(scale: Scale, expected: list[float]) -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    seen = next(vgg11("relu", 0, scale).children())(pixels)
    assert seen.dtype == torch.float32
    assert torch.allclose(seen, torch.tensor(expected, dtype=torch.float32))


def split(count: int, seed: int) -> Tensors:
    """Return random images and labels."""
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, 1, 32, 32), dtype=np.uint8)
    return Tensors(torch.from_numpy(images), torch.from_numpy(random.integers(0, CLASSES, count)))


@pytest.mark.parametrize(
    ("sides", "way"),
    [
        ((1, 1), "SmallConvolution"),
        ((2, 2), "SmallConvolution"),
        ((2, 3), "SmallConvolution"),
        ((4, 4), "SmallConvolution"),
        ((4, 3), "SmallConvolution"),
        ((8, 9), "Convolution"),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_a_convolution_and_its_gradients_are_pytorchs_on_maps_of_any_size(
    sides: tuple[int, int], way: str, dtype: torch.dtype, tolerance: float
) -> None:
    set_seed(0, epoch=1)
    ours = Convolution(6, 5).to(dtype).to(memory_format=torch.channels_last)
    torchs = nn.Conv2d(6, 5, kernel_size=3, padding=1).to(dtype)
    torchs.load_state_dict(ours.state_dict())
    maps = torch.randn(3, 6, *sides, dtype=dtype, requires_grad=True)
    assert re.fullmatch(rf"_?{way}Backward\d*", type(ours(maps).grad_fn).__name__)
    upstream = torch.randn(3, 5, *sides, dtype=dtype)
    results = []
    for layer in (ours, torchs):
        inputs = (maps, *layer.parameters())
        results.append([layer(maps), *torch.autograd.grad(layer(maps), inputs, upstream)])
    for mine, expected in zip(*results, strict=True):
        assert mine.shape == expected.shape
        assert torch.allclose(mine, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("sides", [(2, 2), (4, 3)])
def test_a_small_convolution_in_bf16_is_as_near_to_float32_as_pytorchs(
    sides: tuple[int, int],
) -> None:
    set_seed(0, epoch=1)
    ours = Convolution(16, 32).to(memory_format=torch.channels_last)
    torchs = nn.Conv2d(16, 32, kernel_size=3, padding=1)
    torchs.load_state_dict(ours.state_dict())
    maps = torch.randn(64, 16, *sides, requires_grad=True)
    upstream = torch.randn(64, 32, *sides)
    results = []
    for layer, bf16 in ((ours, True), (torchs, True), (torchs, False)):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            outputs = layer(maps)
        assert ("SmallConvolution" in type(outputs.grad_fn).__name__) == (layer is ours)
        wanted = (maps, *layer.parameters())
        results.append([outputs, *torch.autograd.grad(outputs, wanted, upstream.to(outputs.dtype))])
    for mine, theirs, exact in zip(*results, strict=True):
        assert mine.dtype == theirs.dtype
        assert 0 < (mine - exact).abs().mean() < 1.2 * (theirs - exact).abs().mean()


@pytest.mark.parametrize(("avx512", "side"), [(True, 4), (False, 8)])
def test_what_counts_as_small_is_the_processors(
    avx512: bool, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_f": avx512})
    monkeypatch.setattr("stages.lib.network._small", _small.__wrapped__)
    kinds = [type(Convolution(1, 1)(torch.ones(1, 1, n, 1)).grad_fn) for n in (side, side + 1)]
    assert [kind.__name__ for kind in kinds] == [
        "_SmallConvolutionBackward",
        "ConvolutionBackward0",
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_zeroes_a_part_and_scales_the_rest(dtype: torch.dtype) -> None:
    set_seed(0, epoch=1)
    layer, units = Dropout(0.25), torch.full((100, 1000), 3.0, dtype=dtype, requires_grad=True)
    outputs = layer(units)
    (gradient,) = torch.autograd.grad(outputs.sum(), units)
    assert outputs.dtype == gradient.dtype == dtype
    assert outputs.unique().tolist() == pytest.approx([0, 4], rel=0.01)
    assert torch.equal(gradient * 3, outputs)
    # Five standard deviations of a binomial.
    assert abs((outputs == 0).double().mean().item() - 0.25) < 5 * (0.25 * 0.75 / 1e5) ** 0.5
    assert torch.equal(layer.eval()(units), units)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Sigmoid()])
def test_pooling_commutes_with_the_activation_gradients_included(activation: nn.Module) -> None:
    set_seed(0, epoch=1)
    pool = nn.MaxPool2d(2)
    maps = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    results = []
    for layers in (nn.Sequential(pool, activation), nn.Sequential(activation, pool)):
        results.append([layers(maps), *torch.autograd.grad(layers(maps).square().sum(), maps)])
    for ours, notebooks in zip(*results, strict=True):
        assert torch.equal(ours, notebooks)


def test_bf16_multiplies_in_bfloat16_all_but_the_last_layer_and_keeps_weights_in_float32() -> None:
    set_seed(0, epoch=0)
    network = vgg11("relu", 0, "none", "bf16")
    full = vgg11("relu", 0, "none")
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


def trained(
    seed: int, epochs: int, interrupted: bool = False, precision: Precision = "fp32"
) -> tuple[nn.Module, list[EpochRow]]:
    """Train on a few random images, in one go or epoch by epoch."""
    set_seed(seed, epoch=0)
    network = vgg11("relu", 0.5, "none", precision)
    optimizer = make_optimizer(network, ADAM)
    splits = {"train": split(10, 0), "test": split(6, 1)}
    rows: list[EpochRow] = []
    for span in (
        [range(n, n + 1) for n in range(1, epochs + 1)] if interrupted else [range(1, epochs + 1)]
    ):
        rows += train(network, optimizer, splits, seed, span, batch_size=4)
        if interrupted:
            torch.rand(7)  # whatever else draws random numbers between two epochs
    return network, rows


@pytest.mark.parametrize("precision", get_args(Precision))
def test_the_same_seed_gives_the_same_bits_in_one_go_or_not(precision: Precision) -> None:
    whole, rows = trained(seed=3, epochs=2, precision=precision)
    parts, same_rows = trained(seed=3, epochs=2, interrupted=True, precision=precision)
    assert rows == same_rows
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name


def test_an_epoch_depends_on_the_seed_and_its_number_alone() -> None:
    _, rows = trained(seed=3, epochs=2)
    _, other = trained(seed=4, epochs=1)
    assert other[0] != rows[0]
    _, shorter = trained(seed=3, epochs=1)
    assert shorter == rows[:1]


def test_every_seed_and_every_epoch_draws_its_own_numbers() -> None:
    drawn = set()
    for seed, epoch in product(range(3), range(4)):
        set_seed(seed, epoch)
        drawn.add(tuple(torch.randperm(50).tolist()))
    assert len(drawn) == 12


def test_a_row_holds_what_was_seen_and_a_norm_per_layer_with_weights() -> None:
    network, rows = trained(seed=0, epochs=1)
    layers = layers_with_weights(network)
    assert list(layers) == [f"conv{n}" for n in range(1, 9)] + [f"linear{n}" for n in (1, 2, 3)]
    assert list(rows[0])[-11:] == [f"gradient_{name}" for name in layers]
    assert all(float(rows[0][f"gradient_{name}"]) > 0 for name in layers)
    test = split(6, 1)
    result = score(predict(network, test.images), test.labels)
    assert (rows[0]["test_accuracy"], rows[0]["test_loss"]) == (result.accuracy, result.loss)


def test_gradient_norms_are_the_mean_over_the_steps() -> None:
    set_seed(0, epoch=0)
    network = vgg11("relu", 0, "none")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)  # every step sees the same weights
    data = split(8, 0)
    (row,) = train(network, optimizer, {"train": data, "test": data}, 0, range(1, 2), batch_size=4)
    set_seed(0, epoch=1)
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
    assert row["gradient_conv5"] == pytest.approx(sum(norms) / 2, rel=1e-4)
    assert row["seen_loss"] == pytest.approx(sum(losses) / 2, rel=1e-4)


def test_batch_statistics_are_those_of_the_batch_and_dropout_is_off() -> None:
    set_seed(0, epoch=0)
    network = vgg11("relu", 0.5, "none")
    images = split(12, 0).images
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    without_dropout = vgg11("relu", 0, "none")
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
    assert not torch.allclose(logits, predict(vgg11("relu", 0.5, "none"), images))


def test_weights_come_back_and_others_are_refused(tmp_path: Path) -> None:
    network = vgg11("relu", 0, "none")
    path = tmp_path / "0.safetensors"
    described = {"activation": "relu", "dropout": 0, "scale": "none", "precision": "fp32"}
    save_weights(path, network, described)
    images = split(3, 0).images
    assert torch.equal(predict(load_network(path), images), predict(network, images))
    state = load_network(path).state_dict()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name])
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"", b"\x80\x04pickle"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"0\.safetensors"):
            load_network(path)
    wrong: list[tuple[str, object]] = [
        *[("activation", "tanh"), ("activation", []), ("dropout", "0.5"), ("dropout", 2)],
        *[("scale", "full"), ("precision", "fp64")],
    ]
    for other in ({}, *(described | {key: value} for key, value in wrong)):
        save_weights(path, network, other)
        with pytest.raises(
            InputError, match=r"0\.safetensors does not hold our network: .*dvc repro"
        ):
            load_network(path)
    write_tensors(path, {"conv1.weight": np.zeros((64, 1, 3, 3), np.float32)}, described)
    with pytest.raises(InputError, match=r"does not hold our network: .*dvc repro"):
        load_network(path)
