"""The notebook's VGG11 with batch normalisation, as data: a list of widths and one loop."""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import product

import torch
from torch import nn

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
    """A 3x3 convolution with a border of zeros.

    On a map of 2x2 pixels each of them sees every other, through 4 of the 9 taps; the other 5 see
    zeros. That is a linear layer, for which a CPU needs less than half the time.
    """

    # For the output's pixel (y, x) and the input's (i, j): the tap between them, of 3 in a row.
    TAPS = tuple(3 * (1 + i - y) + 1 + j - x for y, x, i, j in product((0, 1), repeat=4))

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, kernel_size=3, padding=1)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (N, channels_out, height, width) of (N, channels_in, height, width)."""
        if maps.shape[2:] != (2, 2) or self.bias is None:
            return super().forward(maps)
        taps = torch.tensor(self.TAPS, device=maps.device)
        kernel = self.weight.permute(0, 2, 3, 1).flatten(1, 2).index_select(1, taps)
        weight = kernel.view(4 * self.out_channels, 4 * self.in_channels)
        pixels = maps.permute(0, 2, 3, 1).flatten(1)
        bias = self.bias.repeat_interleave(4)
        return nn.functional.linear(pixels, weight, bias).view(-1, self.out_channels, 2, 2)


class Network(nn.Sequential):
    """Layers in a row, computed in the precision that is named.

    "bf16" is PyTorch's autocast: products in bfloat16, weights, norms and logits in float32.
    """

    def __init__(self, layers: OrderedDict[str, nn.Module], precision: Precision) -> None:
        super().__init__(layers)
        self.precision: Precision = precision

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits, float32 (N, 10), of uint8 images (N, 1, height, width)."""
        bf16 = self.precision == "bf16"
        with torch.autocast(images.device.type, torch.bfloat16, enabled=bf16):
            for layer in self:
                images = layer(images)
        return images.float()


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
