"""The training loop: one epoch after the other, each a function of the seed and its number."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from stages.lib.evaluation import Tensors, predict, score
from stages.lib.network import layers_with_weights
from stages.lib.params import Variant

EpochRow = dict[str, int | float]


def set_seed(seed: int, epoch: int) -> None:
    """Make all random numbers that follow a function of (seed, epoch); epoch 0 is initialisation.

    The two are mixed by numpy.random.SeedSequence, whose algorithm NumPy keeps for good.
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]))


def make_optimizer(network: nn.Module, variant: Variant) -> torch.optim.Optimizer:
    """Return the variant's optimizer; fused, which updates all weights in one pass over memory."""
    if variant.optimizer == "sgd":
        return torch.optim.SGD(network.parameters(), variant.lr, variant.momentum, fused=True)
    return torch.optim.Adam(network.parameters(), variant.lr, fused=True)


def train(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    splits: dict[str, Tensors],
    seed: int,
    epochs: range,
    batch_size: int,
) -> Iterator[EpochRow]:
    """Train the network in place and yield, after each epoch, what was learned.

    Args:
        network: uint8 images to logits.
        optimizer: of its parameters.
        splits: "train" and "test".
        seed: with the epoch's number, decides the permutation and the dropout masks.
        epochs: their numbers, the first of all being 1.
        batch_size: images per step; the last batch may be short.

    Yields:
        epoch: its number.
        train_accuracy, train_loss, test_accuracy, test_loss: in evaluation mode, after the epoch.
        seen_accuracy, seen_loss: in training mode, of the batches as they went by.
        gradient_LAYER: L2 norm of the gradient of the layer's weight, mean over the steps.
    """
    for epoch in epochs:
        set_seed(seed, epoch)
        seen = train_epoch(network, optimizer, splits["train"], batch_size, f"epoch {epoch}")
        row: EpochRow = {"epoch": epoch}
        for name, split in splits.items():
            result = score(predict(network, split.images), split.labels)
            row |= {f"{name}_accuracy": result.accuracy, f"{name}_loss": result.loss}
        yield row | seen


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    split: Tensors,
    batch_size: int,
    label: str,
) -> EpochRow:
    """Train the network in place for one epoch; return the `seen_` and `gradient_` of `train`.

    Args:
        network: as `train`.
        optimizer: likewise.
        split: what to train on, in an order drawn from PyTorch's global random numbers.
        batch_size: as `train`.
        label: for the progress bar.
    """
    network.train()
    weights = {name: layer.weight for name, layer in layers_with_weights(network).items()}
    losses, hits, norms = [], [], []
    # Drawn on the CPU, so that the order is the same on every device.
    order = torch.randperm(len(split.labels)).to(split.labels.device)
    for batch in tqdm(torch.split(order, batch_size), label, leave=False, disable=None):
        labels = split.labels[batch]
        logits = network(split.images[batch])
        loss = cross_entropy(logits, labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        # Nothing is read back within the epoch: that would make a GPU wait for every step.
        losses.append(loss.detach() * len(batch))
        hits.append((logits.detach().argmax(dim=1) == labels).sum())
        norms.append(torch.stack([w.grad.norm() for w in weights.values() if w.grad is not None]))
    means = torch.stack(norms).cpu().double().mean(dim=0).tolist()
    return {
        "seen_accuracy": torch.stack(hits).sum().item() / len(split.labels),
        "seen_loss": torch.stack(losses).cpu().double().sum().item() / len(split.labels),
        **{f"gradient_{name}": mean for name, mean in zip(weights, means, strict=True)},
    }
