"""PyTorch's layers, computed faster on a CPU: the same functions, other rounding.

- `Convolution` replaces `nn.Conv2d` with a 3x3 kernel and a padding of 1.
- `Dropout` replaces `nn.Dropout`.

On every other device they are PyTorch's own. docs/performance.md says what each is worth.
"""

from functools import cache
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, linear


class Convolution(nn.Conv2d):
    """3x3 convolution, padding 1, with a faster CPU path for small maps.

    On a 2x2 map every output pixel sees all 4 inputs through 4 of the 9 taps, and the rest is
    padding: that is a linear layer. On other maps up to 4x4 (up to 8x8 without AVX-512) only the
    gradient of the weights is computed differently.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, kernel_size=3, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (N, channels_out, height, width) of (N, channels_in, height, width)."""
        if maps.device.type != "cpu" or max(maps.shape[2:]) > _largest_small_side():
            return super().forward(maps)
        if torch.is_autocast_enabled("cpu"):
            maps = maps.to(torch.get_autocast_dtype("cpu"))
        result: torch.Tensor = _SmallConvolution.apply(maps, self.weight, self.bias)
        return result


@cache
def _largest_small_side() -> int:
    """Return up to how many pixels a side a matrix product per tap is faster than oneDNN's kernel.

    With AVX2, oneDNN's kernel for the gradient of the weights reaches little more than half the
    rate of a matrix product. With AVX-512 it reaches all of it.
    """
    return 4 if torch.cpu.get_capabilities().get("avx512_f") else 8


class _SmallConvolution(torch.autograd.Function):
    """The convolution of a small map, in the data type of the map.

    The weights may have another type. Their gradients then have the type of the weights, as after
    PyTorch's own autocast.
    """

    @staticmethod
    def forward(
        ctx: Any, maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        two = maps.shape[2:] == (2, 2)
        factor = _as_matrix(weight, maps.dtype) if two else weight.to(maps.dtype)
        ctx.save_for_backward(maps, factor)
        ctx.weight_dtype = weight.dtype
        bias = bias.to(maps.dtype)
        with torch.autocast("cpu", enabled=False):
            if not two:
                return conv2d(maps, factor, bias, padding=1)
            outputs = linear(maps.permute(0, 2, 3, 1).flatten(1), factor, bias.repeat(4))
        # The rows of the matrix are in reverse order of the pixels, so the flip restores them.
        return outputs.view(-1, 2, 2, len(bias)).flip(1, 2).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps, factor = ctx.saved_tensors
        if maps.shape[2:] == (2, 2):
            pixels = gradient.permute(0, 2, 3, 1).flip(1, 2).flatten(1) @ factor
            of_maps = pixels.view(-1, 2, 2, maps.shape[1]).permute(0, 3, 1, 2)
        else:
            geometry = [1, 1], [1, 1], [1, 1], False, [0, 0], 1  # stride, padding ... groups
            wanted = True, False, False  # gradients of the maps, of the weights, of the bias
            of_maps, *_ = torch.ops.aten.convolution_backward(
                gradient, maps, factor, None, *geometry, wanted
            )
        of_weight = _weight_gradient(maps, gradient, ctx.weight_dtype)
        return of_maps, of_weight, gradient.sum((0, 2, 3), dtype=ctx.weight_dtype)


def _as_matrix(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the equivalent linear layer's matrix, (4 * channels_out, 4 * channels_in).

    Output pixel (y, x) reads the input through the 2x2 block of taps that starts at (1 - y, 1 - x),
    so the rows are in reverse order of the output pixels. The caller flips them back.

    Args:
        weight: (channels_out, channels_in, 3, 3).
        dtype: of the matrix.
    """
    windows = weight.unfold(2, 2, 1).unfold(3, 2, 1)  # out, in, y and x of window, of tap
    windows = windows.permute(2, 3, 0, 4, 5, 1)
    # One pass over memory: copy_ reorders and converts at once.
    matrix = torch.empty(windows.shape, dtype=dtype).copy_(windows)
    return matrix.view(4 * weight.shape[0], 4 * weight.shape[1])


def _weight_gradient(
    maps: torch.Tensor, gradient: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return the gradient of the weights, (channels_out, channels_in, 3, 3).

    For each of the 9 taps this is one matrix product, over the pixels for which that tap lies
    inside the map. On a 4x4 map that leaves out 31 % of the multiply-adds.

    Args:
        maps: (N, channels_in, height, width).
        gradient: of the output, (N, channels_out, height, width).
        dtype: of the result.
    """
    (height, width), channels_in, channels_out = maps.shape[2:], maps.shape[1], gradient.shape[1]
    inputs, outputs = maps.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    result = maps.new_empty(channels_out, 3, 3, channels_in, dtype=dtype)
    for y, x in product(range(3), repeat=2):
        top, bottom = max(0, 1 - y), min(height, height + 1 - y)
        left, right = max(0, 1 - x), min(width, width + 1 - x)
        into = inputs[:, top + y - 1 : bottom + y - 1, left + x - 1 : right + x - 1]
        out = outputs[:, top:bottom, left:right]
        result[:, y, x] = out.reshape(-1, channels_out).T @ into.reshape(-1, channels_in)
    return result.permute(0, 3, 1, 2)


class Dropout(nn.Dropout):
    """Dropout, with the mask drawn from uniform numbers.

    PyTorch's own draws Bernoulli numbers, which takes a CPU four times as long.
    """

    def forward(self, units: torch.Tensor) -> torch.Tensor:
        """Return the units, in training each zero with probability p and else divided by 1 - p."""
        if not self.training or units.device.type != "cpu":
            return super().forward(units)
        kept = torch.rand(units.shape).ge_(self.p)
        return units * kept.div_(1 - self.p).to(units.dtype)
