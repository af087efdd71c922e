"""Inference: the logits of a network, and how good they are."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from stages.learning.split import load_split

# Images at a time. With fewer, reading and converting the weights would cost much beside the
# arithmetic; with more, memory would grow with the split.
CHUNK = 400


@dataclass(frozen=True)
class Images:
    """A whole split on the device: small enough that no loader is needed."""

    images: torch.Tensor  # uint8 (N, 1, side, side)
    labels: torch.Tensor  # int64 (N)


@dataclass(frozen=True)
class Score:
    """How good a network is on a split."""

    accuracy: float  # fraction of images whose largest logit is the label's
    loss: float  # mean cross-entropy in nats


def load_images(subset: Path, name: str, device: torch.device) -> Images:
    """Read the split `name` of the subset and put it on the device.

    Raises:
        InputError: as load_split.
    """
    split = load_split(subset, name)
    images, labels = torch.from_numpy(split.images), torch.from_numpy(split.labels)
    return Images(images.to(device), labels.to(device))


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

    Dropout stays off. The batches come from a fixed random permutation, because the subset is
    sorted by class. The running statistics of the network are overwritten: do not use the network
    afterwards.
    """
    network.eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    batches = torch.split(order.to(images.device), batch_size)
    logits = torch.cat([network(images[batch]) for batch in batches]).cpu().double()
    return logits[torch.argsort(order)]
