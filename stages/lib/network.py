"""The notebook's VGG11 with batch normalisation, as data: a list of widths and one loop."""

from collections import OrderedDict
from collections.abc import Iterator
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

    SMALL = 8  # pixels of a side, up to which that pays on a CPU with AVX2 in float32

    # For the output's pixel (y, x) and the input's (i, j): the tap between them, of 3 in a row.
    TAPS = tuple(3 * (1 + i - y) + 1 + j - x for y, x, i, j in product((0, 1), repeat=4))

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, kernel_size=3, padding=1)
        self.register_buffer("taps", torch.tensor(self.TAPS), persistent=False)
        self.taps: torch.Tensor

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (N, channels_out, height, width) of (N, channels_in, height, width)."""
        sides, kind = maps.shape[2:], maps.device.type
        if sides == (2, 2):
            return self._as_linear(maps)
        if kind == "cpu" and max(sides) <= self.SMALL and not torch.is_autocast_enabled(kind):
            result: torch.Tensor = _SmallConvolution.apply(maps, self.weight, self.bias)
            return result
        return super().forward(maps)

    def _as_linear(self, maps: torch.Tensor) -> torch.Tensor:
        assert self.bias is not None
        kernel = self.weight.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, self.taps)
        weight = kernel.view(4 * self.out_channels, 4 * self.in_channels)
        pixels = maps.permute(0, 2, 3, 1).flatten(1)
        bias = self.bias.repeat_interleave(4)
        return linear(pixels, weight, bias).view(-1, self.out_channels, 2, 2)


class _SmallConvolution(torch.autograd.Function):
    """PyTorch's convolution, but for the gradient of its weights."""

    @staticmethod
    def forward(
        ctx: Any, maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(maps, weight)
        return conv2d(maps, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps, weight = ctx.saved_tensors
        geometry = [1, 1], [1, 1], [1, 1], False, [0, 0], 1  # stride, padding, dilation ... groups
        wanted = True, False, False  # gradients of the maps, of the weights, of the bias
        of_maps, *_ = torch.ops.aten.convolution_backward(
            gradient, maps, weight, None, *geometry, wanted
        )
        return of_maps, _weight_gradient(maps, gradient), gradient.sum((0, 2, 3))


def _weight_gradient(maps: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return it by a matrix product per tap, over the pixels that see no padding through it.

    On a 4x4 map that leaves out 31 % of the multiply-adds; and oneDNN's kernel for AVX2 does this
    gradient, unlike the rest of a convolution, at little more than half a matrix product's rate.

    Args:
        maps: (N, channels_in, height, width).
        gradient: of the output, (N, channels_out, height, width).
    """
    (height, width), channels_in, channels_out = maps.shape[2:], maps.shape[1], gradient.shape[1]
    inputs, outputs = maps.permute(0, 2, 3, 1), gradient.permute(0, 2, 3, 1)
    result = maps.new_empty(channels_out, 3, 3, channels_in)
    for y, x in product(range(3), repeat=2):
        top, bottom = max(0, 1 - y), min(height, height + 1 - y)
        left, right = max(0, 1 - x), min(width, width + 1 - x)
        into = inputs[:, top + y - 1 : bottom + y - 1, left + x - 1 : right + x - 1]
        out = outputs[:, top:bottom, left:right]
        result[:, y, x] = out.reshape(-1, channels_out).T @ into.reshape(-1, channels_in)
    return result.permute(0, 3, 1, 2)


class Network(nn.Sequential):
    """Layers in a row, computed in the precision that is named.

    "bf16" is PyTorch's autocast of all but the last: products in bfloat16, weights, norms and
    logits in float32.
    """

    def __init__(self, layers: OrderedDict[str, nn.Module], precision: Precision) -> None:
        super().__init__(layers)
        self.compute_dtype = COMPUTE_DTYPES[precision]

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
            yield f"dropout{number}", nn.Dropout(dropout)
        width = units
    yield f"linear{len(HIDDEN) + 1}", nn.Linear(width, CLASSES)
