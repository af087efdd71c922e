"""The training loop. An epoch is a function of the state before it, the seed and its number."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from stages.learning.history import EpochRow
from stages.learning.inference import Images, predict, score
from stages.learning.network import layers_with_weights
from stages.support.params import Variant


def set_seed(seed: int, epoch: int) -> None:
    """Seed PyTorch's global random numbers from (seed, epoch); epoch 0 is the initialisation.

    numpy.random.SeedSequence mixes the two: NumPy promises to keep its algorithm.
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]))


def make_optimizer(network: nn.Module, variant: Variant) -> torch.optim.Optimizer:
    """Return the variant's optimizer, fused: it updates all weights in one pass over memory."""
    if variant.optimizer == "sgd":
        assert variant.momentum is not None  # params.yaml is checked
        return torch.optim.SGD(network.parameters(), variant.lr, variant.momentum, fused=True)
    return torch.optim.Adam(network.parameters(), variant.lr, fused=True)


def train(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    splits: dict[str, Images],
    seed: int,
    epochs: range,
    batch_size: int,
) -> Iterator[EpochRow]:
    """Train the network in place and yield, after each epoch, what was learned.

    Args:
        network: uint8 images to logits.
        optimizer: of its parameters.
        splits: "train" and "test".
        seed: decides, together with the epoch's number, the permutation and the dropout masks.
        epochs: the numbers of the epochs to train; the first epoch of a training is 1.
        batch_size: images per step; the last batch may be short.
    """
    for epoch in epochs:
        set_seed(seed, epoch)
        seen = train_epoch(network, optimizer, splits["train"], batch_size, f"epoch {epoch}")
        after: dict[str, float] = {}
        for name, split in splits.items():
            result = score(predict(network, split.images), split.labels)
            after |= {f"{name}_accuracy": result.accuracy, f"{name}_loss": result.loss}
        yield EpochRow.model_validate({"epoch": epoch, **after, **seen})


def train_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    split: Images,
    batch_size: int,
    label: str,
) -> dict[str, float]:
    """Train the network in place for one epoch; return what an `EpochRow` says of training mode.

    Args:
        network: uint8 images to logits.
        optimizer: of its parameters.
        split: what to train on, in an order drawn from PyTorch's global random numbers.
        batch_size: images per step; the last batch may be short.
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
