"""The notebook's VGG11 with batch normalisation, as data: a list of widths and one loop."""

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import nn

from stages.lib.params import CLASSES, Activation, Scale

# Channels of the 3x3 convolutions; "pool" halves both sides. 32x32 pixels become 1x1.
CONVOLUTIONS = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")
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


def vgg11(activation: Activation, dropout: float, scale: Scale) -> nn.Sequential:
    """Return the network: uint8 images (N, 1, 32, 32) to logits (N, 10).

    Layers are named conv1 ... conv8 and linear1 ... linear3, and what belongs to each bears its
    number; these make the keys of the saved weights. Initialised as PyTorch does by default, from
    its global random numbers, and kept channels last, for which oneDNN's and cuDNN's
    convolutions are fastest.

    Args:
        activation: after every layer but the last.
        dropout: probability of dropping a unit after each hidden linear layer; 0 for no dropout.
        scale: of the pixels.
    """
    layers = OrderedDict(_layers(ACTIVATIONS[activation], dropout, scale))
    return nn.Sequential(layers).to(memory_format=torch.channels_last)


def layers_with_weights(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the convolutions and linear layers by name, first to last."""
    layers = network.named_children()
    return {name: layer for name, layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)}


def _layers(
    activation: type[nn.Module], dropout: float, scale: Scale
) -> Iterator[tuple[str, nn.Module]]:
    yield "pixels", Pixels(scale)
    width, number = 1, 0
    for step in CONVOLUTIONS:
        if isinstance(step, int):
            number += 1
            yield f"conv{number}", nn.Conv2d(width, step, kernel_size=3, padding=1)
            yield f"norm{number}", nn.BatchNorm2d(step)
            yield f"activation{number}", activation()
            width = step
        else:
            yield f"pool{number}", nn.MaxPool2d(2)
    yield "flatten", nn.Flatten()
    for number, units in enumerate(HIDDEN, start=1):
        yield f"linear{number}", nn.Linear(width, units)
        yield f"linear_activation{number}", activation()
        if dropout:
            yield f"dropout{number}", nn.Dropout(dropout)
        width = units
    yield f"linear{len(HIDDEN) + 1}", nn.Linear(width, CLASSES)
