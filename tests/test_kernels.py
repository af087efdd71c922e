"""The faster layers compute what PyTorch's own layers compute."""

import re

import pytest
import torch
from torch import nn

from stages.learning.kernels import Convolution, Dropout
from stages.learning.loop import set_seed


@pytest.mark.parametrize(
    ("sides", "way"),
    [
        ((1, 1), "SmallConvolution"),
        ((2, 2), "SmallConvolution"),
        ((2, 3), "SmallConvolution"),
        ((4, 4), "SmallConvolution"),
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
