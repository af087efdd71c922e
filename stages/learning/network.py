"""The network: a VGG with batch normalisation, as params.yaml describes it.

The committed params.yaml describes the notebook's VGG11.
"""

from collections import OrderedDict

import torch
from torch import nn

from stages.learning.kernels import Convolution, Dropout
from stages.support.params import CLASSES, Activation, Architecture, Precision, Scale

# Rising functions all of them, or `vgg` might not pool before it activates.
ACTIVATIONS: dict[Activation, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}
COMPUTE_DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
SCALES: dict[Scale, tuple[float, float]] = {  # offset and divisor of a pixel 0..255
    "none": (0, 1),  # the notebook's raw pixels
    "unit": (0, 255),
    "half": (127.5, 127.5),  # the notebook's unused Normalize(0.5, 0.5), after division by 255
}


def vgg(
    architecture: Architecture,
    side: int,
    activation: Activation,
    dropout: float,
    scale: Scale,
    precision: Precision,
) -> "Network":
    """Return the network: uint8 images (N, 1, side, side) to logits (N, 10).

    Layers are named conv1, conv2 ... and linear1, linear2 ..., and a layer that belongs to one of
    them bears its number. The names make the keys of the saved weights. Weights are initialised as
    PyTorch does by default, from its global random numbers. They are kept channels last, the memory
    format in which oneDNN's and cuDNN's convolutions are fastest.

    Args:
        architecture: widths of the layers, where a pooling follows, momentum of the norms.
        side: pixels of a side of the images.
        activation: after every layer but the last.
        dropout: probability of dropping a unit after each hidden linear layer; 0 for no dropout.
        scale: of the pixels.
        precision: of the arithmetic.
    """
    new_activation = ACTIVATIONS[activation]
    layers: OrderedDict[str, nn.Module] = OrderedDict(pixels=Pixels(scale))
    channels, number = 1, 0
    for width, following in zip(architecture.widths, (*architecture.widths[1:], None), strict=True):
        if width == "M":
            continue
        number += 1
        layers[f"conv{number}"] = Convolution(channels, width)
        layers[f"norm{number}"] = nn.BatchNorm2d(width, momentum=architecture.batch_norm_momentum)
        if following == "M":
            # A rising function keeps the greatest value the greatest, so pooling may come first:
            # the result is the same, bit by bit, with a quarter of the activations to compute.
            layers[f"pool{number}"] = nn.MaxPool2d(2)
            side //= 2
        layers[f"activation{number}"] = new_activation()
        channels = width

    layers["flatten"] = nn.Flatten()
    units = channels * side**2
    for number, width in enumerate(architecture.hidden, start=1):
        layers[f"linear{number}"] = nn.Linear(units, width)
        layers[f"linear_activation{number}"] = new_activation()
        if dropout:
            layers[f"dropout{number}"] = Dropout(dropout)
        units = width
    layers[f"linear{len(architecture.hidden) + 1}"] = nn.Linear(units, CLASSES)
    return Network(layers, precision).to(memory_format=torch.channels_last)


class Pixels(nn.Module):
    """The first layer: pixels as the subset holds them become what the first convolution sees."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        self.offset, self.divisor = SCALES[scale]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return uint8 (N, 1, height, width) as float32, shifted and divided."""
        return (images.float() - self.offset) / self.divisor


class Network(nn.Sequential):
    """Layers in a row, computed in the given precision.

    "bf16" is PyTorch's autocast for all layers but the last: products in bfloat16, but weights,
    norms and logits in float32.
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


def layers_with_weights(network: nn.Module) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the convolutions and linear layers by name, first to last."""
    layers = network.named_children()
    return {name: layer for name, layer in layers if isinstance(layer, nn.Conv2d | nn.Linear)}
