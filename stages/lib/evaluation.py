"""What a network makes of a split."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stages.lib.subset import load_split

# Images at a time: enough for reading and converting the weights to cost little beside the
# arithmetic, few enough for memory not to grow with the split.
CHUNK = 400


@dataclass(frozen=True)
class Tensors:
    """A split on the device, all of it, since it is small."""

    images: torch.Tensor  # uint8 (N, 1, side, side)
    labels: torch.Tensor  # int64 (N)


@dataclass(frozen=True)
class Score:
    """Of a network on a split."""

    accuracy: float  # fraction of images whose largest logit is the label's
    loss: float  # mean cross-entropy in nats


def load_tensors(subset: Path, name: str, device: torch.device) -> Tensors:
    """Read the split `name` of the subset and put it on the device.

    Raises:
        InputError: as load_split.
    """
    split = load_split(subset, name)
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    return Tensors(images.to(device), labels.to(device))


@torch.inference_mode()
def predict(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the logits, float64 (N, 10) on the CPU, of uint8 images (N, 1, side, side).

    The network is left in evaluation mode.
    """
    network.eval()
    return torch.cat([network(chunk) for chunk in torch.split(images, CHUNK)]).cpu().double()


def score(logits: torch.Tensor, labels: torch.Tensor) -> Score:
    """Return accuracy and loss of logits (N, 10) from `predict` for labels (N)."""
    labels = labels.cpu()
    return Score(
        accuracy=(logits.argmax(dim=1) == labels).double().mean().item(),
        loss=cross_entropy(logits, labels).item(),
    )


@torch.inference_mode()
def predict_with_batch_statistics(
    network: nn.Module, images: torch.Tensor, batch_size: int
) -> torch.Tensor:
    """Return the logits as `predict`, with each batch normalised by its own mean and variance.

    Dropout stays off. The batches are those of a fixed random permutation, since the subset is
    sorted by class. The running statistics of the network are used up: do not use it afterwards.
    """
    network.eval()
    for layer in network.children():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    batches = torch.split(order.to(images.device), batch_size)
    logits = torch.cat([network(images[batch]) for batch in batches]).cpu().double()
    return logits[torch.argsort(order)]
