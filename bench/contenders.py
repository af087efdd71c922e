"""Ways to train the notebook's network, each with an epoch of training and an evaluation."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from stages.lib.device import prepare
from stages.lib.evaluation import Tensors, predict, score
from stages.lib.network import CONVOLUTIONS, HIDDEN, Convolution, Dropout, vgg11
from stages.lib.params import CLASSES, Precision, Variant
from stages.lib.training import make_optimizer, set_seed, train_epoch

ADAM = Variant(activation="relu", dropout=0.5, optimizer="adam", lr=0.001)  # the notebook's third
BATCH = 64
PEAK_SIDE = 2048  # of the square matrices whose product shows what the machine can do
PEAK_PRODUCTS = 5


class Contender(ABC):
    """Something to measure; what it returns is only there to have been computed."""

    @abstractmethod
    def train(self) -> object:
        """Train for one epoch."""

    @abstractmethod
    def evaluate(self) -> object:
        """Evaluate all images once."""


class Notebook(Contender):
    """The notebook's loop, written plainly: whole splits, default formats, default optimizer."""

    def __init__(self, split: Tensors) -> None:
        self.images, self.labels = split.images.float(), split.labels
        self.network = plain_network().to(self.images.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), ADAM.lr)

    def train(self) -> object:
        """Train for one epoch."""
        self.network.train()
        for images, labels in self.batches():
            self.optimizer.zero_grad()
            loss = cross_entropy(self.network(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        return loss.item()

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images and labels in a fresh random order."""
        order = torch.randperm(len(self.labels))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            yield self.images[batch], self.labels[batch]

    @torch.no_grad()
    def evaluate(self) -> object:
        """Evaluate all images in one batch."""
        self.network.eval()
        logits = self.network(self.images)
        accuracy = (logits.argmax(dim=1) == self.labels).float().mean()
        return accuracy.item(), cross_entropy(logits, self.labels).item()


class Loader(Notebook):
    """What PyTorch's tutorials do: a DataLoader for training, and one for evaluation."""

    def __init__(self, split: Tensors) -> None:
        super().__init__(split)
        self.data = TensorDataset(self.images, self.labels)

    def batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield images and labels in a fresh random order."""
        yield from DataLoader(self.data, BATCH, shuffle=True)

    @torch.no_grad()
    def evaluate(self) -> object:
        """Evaluate all images, batch by batch."""
        self.network.eval()
        hits, loss = 0.0, 0.0
        for images, labels in DataLoader(self.data, BATCH):
            logits = self.network(images)
            hits += (logits.argmax(dim=1) == labels).sum().item()
            loss += cross_entropy(logits, labels, reduction="sum").item()
        return hits / len(self.data), loss / len(self.data)


class Step(Notebook):
    """The notebook's loop after so many steps of the road from it to the pipeline."""

    def __init__(self, split: Tensors, steps: int) -> None:
        self.images, self.labels = split.images.float(), split.labels
        self.taken = ROAD[:steps]
        device = split.images.device
        if DENORMALS in self.taken:
            torch.set_flush_denormal(True)
        if MEMORY in self.taken:
            prepare(device.type)  # type: ignore[arg-type]  # cuda or cpu
        convolution = Convolution if SMALL_MAPS in self.taken else plain_convolution
        dropout = Dropout if MASKS in self.taken else nn.Dropout
        network = plain_network(convolution, dropout, pooled_first=POOLING in self.taken)
        if CHANNELS in self.taken:
            network = network.to(memory_format=torch.channels_last)
        self.network = network.to(device)
        parameters, fused = self.network.parameters(), FUSED in self.taken
        self.optimizer = torch.optim.Adam(parameters, ADAM.lr, fused=fused)

    def evaluate(self) -> object:
        """Evaluate all images once."""
        if CHUNKS not in self.taken:
            return super().evaluate()
        return score(predict(self.network, self.images), self.labels)


class Pipeline(Contender):
    """What the stage `train` does."""

    def __init__(self, split: Tensors, precision: Precision) -> None:
        device = prepare(split.images.device.type)  # type: ignore[arg-type]  # cuda or cpu
        set_seed(0, epoch=0)
        self.split = split
        self.network = vgg11(ADAM.activation, ADAM.dropout, "none", precision).to(device)
        self.optimizer = make_optimizer(self.network, ADAM)

    def train(self) -> object:
        """Train for one epoch."""
        return train_epoch(self.network, self.optimizer, self.split, BATCH, "epoch")

    def evaluate(self) -> object:
        """Evaluate all images once."""
        return score(predict(self.network, self.split.images), self.split.labels)


class Peak(Contender):
    """Products of square matrices, and nothing else."""

    def __init__(self, split: Tensors, dtype: torch.dtype) -> None:
        prepare(split.images.device.type)  # type: ignore[arg-type]  # cuda or cpu
        self.matrix = torch.randn(PEAK_SIDE, PEAK_SIDE, device=split.images.device).to(dtype)

    def train(self) -> object:
        """Multiply a few times."""
        for _ in range(PEAK_PRODUCTS):
            product = self.matrix @ self.matrix
        return product[0, 0].item()

    def evaluate(self) -> object:
        """Do nothing: one measurement is enough."""
        return None


# What was changed in the notebook's loop, in order; each step keeps those before it.
CHUNKS = "evaluation in chunks"
DENORMALS = "denormals flushed"
CHANNELS = "channels last"
FUSED = "fused optimizer"
MEMORY = "freed memory kept"
SMALL_MAPS = "small maps as matrix products"
POOLING = "pooling before the activation"
MASKS = "dropout from uniform numbers"
ROAD = (CHUNKS, DENORMALS, CHANNELS, FUSED, MEMORY, SMALL_MAPS, POOLING, MASKS)

CONTENDERS: dict[str, Callable[[Tensors], Contender]] = {
    "notebook": Notebook,
    "DataLoader": Loader,
    "pipeline fp32": lambda split: Pipeline(split, "fp32"),
    "pipeline bf16": lambda split: Pipeline(split, "bf16"),
    "peak fp32": lambda split: Peak(split, torch.float32),
    "peak bf16": lambda split: Peak(split, torch.bfloat16),
    **{name: partial(Step, steps=number) for number, name in enumerate(ROAD, start=1)},
}


def plain_convolution(channels_in: int, channels_out: int) -> nn.Module:
    """Return PyTorch's convolution, as the notebook has it."""
    return nn.Conv2d(channels_in, channels_out, 3, padding=1)


def plain_network(
    convolution: Callable[[int, int], nn.Module] = plain_convolution,
    dropout: Callable[[float], nn.Module] = nn.Dropout,
    pooled_first: bool = False,
) -> nn.Sequential:
    """Return the notebook's network as a user of PyTorch writes it.

    Args:
        convolution: makes one from its channels, in and out.
        dropout: makes one from its probability.
        pooled_first: before the activation instead of after it.
    """
    layers: list[nn.Module] = []
    width = 1
    for channels, pooled in CONVOLUTIONS:
        layers += [convolution(width, channels), nn.BatchNorm2d(channels)]
        after: list[nn.Module] = [nn.ReLU(), *[nn.MaxPool2d(2)] * pooled]
        layers += after[::-1] if pooled_first else after
        width = channels
    layers.append(nn.Flatten())
    for units in HIDDEN:
        layers += [nn.Linear(width, units), nn.ReLU(), dropout(ADAM.dropout)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))
