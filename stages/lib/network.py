"""The notebook's VGG11 with batch normalisation, as data: a list of widths and one loop."""

from collections import OrderedDict
from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import conv2d, linear

from stages.lib.params import CLASSES, Activation, Precision, Scale

# Channels of the 3x3 convolutions, and whether a pooling follows, which halves both sides.
CONVOLUTIONS = (
    *((64, True), (128, True)),
    *((256, False), (256, True)),
    *((512, False), (512, True)),
    *((512, False), (512, True)),  # 32x32 pixels have become 1x1
)
HIDDEN = (4096, 4096)  # units of the linear layers before the last

ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}
COMPUTE_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
SCALES: dict[Scale, tuple[float, float]] = {  # offset and divisor of a pixel 0..255
    "none": (0, 1),  # the notebook's raw pixels
    "unit": (0, 255),
    "half": (127.5, 127.5),  # the notebook's unused Normalize(0.5, 0.5), after division by 255
}


class Pixels(nn.Module):
    """Turn pixels as the subset holds them into what the first convolution sees."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.offset, self.divisor = SCALES[scale]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return uint8 (N, 1, height, width) as float32, shifted and divided."""
        return (images.float() - self.offset) / self.divisor


class Convolution(nn.Conv2d):
    """A 3x3 convolution with a padding of zeros, through which many taps of a small map look.

    On a map of 2x2 pixels each of them sees every other, through 4 of the 9 taps; the other 5 see
    zeros. That is a linear layer, for which a CPU needs less than half the time. On other small
    maps the gradient of the weights leaves out the padding.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, kernel_size=3, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (N, channels_out, height, width) of (N, channels_in, height, width)."""
        if maps.device.type != "cpu" or max(maps.shape[2:]) > _small():
            return super().forward(maps)
        if torch.is_autocast_enabled("cpu"):
            maps = maps.to(torch.get_autocast_dtype("cpu"))
        result: torch.Tensor = _SmallConvolution.apply(maps, self.weight, self.bias)
        return result


@cache
def _small() -> int:
    """Return how many pixels a map's sides may have for a matrix product per tap to pay.

    oneDNN's own kernel for the gradient of the weights reaches little more than half a matrix
    product's rate with AVX2, all of it with AVX-512.
    """
    return 4 if torch.cpu.get_capabilities().get("avx512_f") else 8


class _SmallConvolution(torch.autograd.Function):
    """PyTorch's convolution, computed in the type of the maps; the weights may be of another.

    Their gradients are of the weights' type, as after PyTorch's own autocast.
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
        # The last pixel comes first: see _as_matrix.
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
    """Return (4 * channels_out, 4 * channels_in) for maps of 2x2 pixels, in one pass over memory.

    An output pixel sees the four pixels through a window of 2x2 taps, the last of them through
    the first window.

    Args:
        weight: (channels_out, channels_in, 3, 3).
        dtype: of the matrix.
    """
    windows = weight.unfold(2, 2, 1).unfold(3, 2, 1)  # out, in, y and x of window, of tap
    windows = windows.permute(2, 3, 0, 4, 5, 1)
    matrix = torch.empty(windows.shape, dtype=dtype).copy_(windows)
    return matrix.view(4 * weight.shape[0], 4 * weight.shape[1])


def _weight_gradient(
    maps: torch.Tensor, gradient: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Return it by a matrix product per tap, over the pixels that see no padding through it.

    On a 4x4 map that leaves out 31 % of the multiply-adds.

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
    """PyTorch's, on a CPU with a mask from uniform numbers, which it draws four times as fast."""

    def forward(self, units: torch.Tensor) -> torch.Tensor:
        """Return the units, in training each zero with probability p and else divided by 1 - p."""
        if not self.training or units.device.type != "cpu":
            return super().forward(units)
        kept = torch.rand(units.shape).ge_(self.p)
        return units * kept.div_(1 - self.p).to(units.dtype)


class Network(nn.Sequential):
    """Layers in a row, computed in the precision that is named.

    "bf16" is PyTorch's autocast of all but the last: products in bfloat16, weights, norms and
    logits in float32.
    """

    def __init__(self, layers: OrderedDict[str, nn.Module], precision: Precision) -> None:
        super().__init__(layers)
        self.precision, self.compute_dtype = precision, COMPUTE_DTYPES[precision]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 (N, 10), of uint8 images (N, 1, height, width)."""
        *hidden, last = self
        kind, bf16 = images.device.type, self.compute_dtype == torch.bfloat16
        with torch.autocast(kind, torch.bfloat16, enabled=bf16):
            for layer in hidden:
                images = layer(images)
        with torch.autocast(kind, enabled=False):
            logits: torch.Tensor = last(images.float())
        return logits


def vgg11(
    activation: Activation, dropout: float, scale: Scale, precision: Precision = "fp32"
) -> Network:
    """Return the network: uint8 images (N, 1, 32, 32) to logits (N, 10).

    Layers are named conv1 ... conv8 and linear1 ... linear3, and what belongs to each bears its
    number; these make the keys of the saved weights. Initialised as PyTorch does by default, from
    its global random numbers, and kept channels last, for which oneDNN's and cuDNN's
    convolutions are fastest.

    Args:
        activation: after every layer but the last.
        dropout: probability of dropping a unit after each hidden linear layer; 0 for no dropout.
        scale: of the pixels.
        precision: of the arithmetic.
    """
    layers = OrderedDict(_layers(ACTIVATIONS[activation], dropout, scale))
    return Network(layers, precision).to(memory_format=torch.channels_last)


def layers_with_weights(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the convolutions and linear layers by name, first to last."""
    layers = network.named_children()
    return {name: layer for name, layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)}


def _layers(
    activation: type[nn.Module], dropout: float, scale: Scale
) -> Iterator[tuple[str, nn.Module]]:
    yield "pixels", Pixels(scale)
    width = 1
    for number, (channels, pooled) in enumerate(CONVOLUTIONS, start=1):
        yield f"conv{number}", Convolution(width, channels)
        yield f"norm{number}", nn.BatchNorm2d(channels)
        # Both activations rise, so that pooling commutes with them, and leaves a quarter to do.
        if pooled:
            yield f"pool{number}", nn.MaxPool2d(2)
        yield f"activation{number}", activation()
        width = channels
    yield "flatten", nn.Flatten()
    for number, units in enumerate(HIDDEN, start=1):
        yield f"linear{number}", nn.Linear(width, units)
        yield f"linear_activation{number}", activation()
        if dropout:
            yield f"dropout{number}", Dropout(dropout)
        width = units
    yield f"linear{len(HIDDEN) + 1}", nn.Linear(width, CLASSES)
