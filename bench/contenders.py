"""Ways to train the notebook's network: each trains for an epoch, and evaluates all images."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from stages.learning.device import set_up_device
from stages.learning.inference import Images, predict, score
from stages.learning.kernels import Convolution, Dropout
from stages.learning.loop import make_optimizer, set_seed, train_epoch
from stages.learning.network import Network, vgg
from stages.support.params import CLASSES, Architecture, Device, Precision, Variant

# The notebook's network and its third question, whatever params.yaml says.
NETWORK = Architecture(
    widths=[64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
    hidden=[4096, 4096],
    batch_norm_momentum=0.1,
)
SIDE = 32
ADAM = Variant(activation="relu", dropout=0.5, optimizer="adam", lr=0.001)
BATCH = 64

KIND: Device = "cuda" if torch.cuda.is_available() else "cpu"
DEVICE = torch.device(KIND)
PEAK_SIDE = 2048  # of the square matrices whose products show what the machine can do
PEAK_PRODUCTS = 5
PEAK_OPERATIONS = 2 * PEAK_SIDE**3 * PEAK_PRODUCTS  # a multiply-add is two

# What was changed in the notebook's loop, in this order. Each step keeps those before it.
CHUNKS = "evaluation in chunks"
DENORMALS = "denormals flushed"
CHANNELS = "channels last"
FUSED = "fused optimizer"
MEMORY = "freed memory kept"
SMALL_MAPS = "small maps as matrix products"
POOLING = "pooling before the activation"
MASKS = "dropout from uniform numbers"
ROAD = (CHUNKS, DENORMALS, CHANNELS, FUSED, MEMORY, SMALL_MAPS, POOLING, MASKS)


class Contender(NamedTuple):
    """Something to time. What the functions return is only there to have been computed."""

    train: Callable[[], object]
    evaluate: Callable[[], object]


def notebook(split: Images, taken: Sequence[str] = ()) -> Contender:
    """Return the notebook's loop, after the steps of the road that are taken.

    Without a step, all is PyTorch's default, and the split is evaluated in one piece.
    """
    if DENORMALS in taken:
        torch.set_flush_denormal(True)
    if MEMORY in taken:
        set_up_device(KIND)
    network = plain_network(taken).to(DEVICE)
    if CHANNELS in taken:
        network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), ADAM.lr, fused=FUSED in taken or None)
    split = Images(split.images.float(), split.labels)

    def train() -> object:
        order = torch.randperm(len(split.labels))
        batches = ((split.images[part], split.labels[part]) for part in torch.split(order, BATCH))
        return plain_epoch(network, optimizer, batches)

    @torch.no_grad()
    def evaluate() -> object:
        network.eval()
        logits = network(split.images)
        accuracy = (logits.argmax(dim=1) == split.labels).float().mean()
        return accuracy.item(), cross_entropy(logits, split.labels).item()

    return Contender(train, partial(in_chunks, network, split) if CHUNKS in taken else evaluate)


def data_loader(split: Images) -> Contender:
    """Return what PyTorch's tutorials do: a DataLoader for training, and one for evaluation."""
    network = plain_network().to(DEVICE)
    optimizer = torch.optim.Adam(network.parameters(), ADAM.lr)
    data = TensorDataset(split.images.float(), split.labels)

    @torch.no_grad()
    def evaluate() -> object:
        network.eval()
        hits, loss = 0.0, 0.0
        for images, labels in DataLoader(data, BATCH):
            logits = network(images)
            hits += (logits.argmax(dim=1) == labels).sum().item()
            loss += cross_entropy(logits, labels, reduction="sum").item()
        return hits / len(data), loss / len(data)

    batches = DataLoader(data, BATCH, shuffle=True)
    return Contender(partial(plain_epoch, network, optimizer, batches), evaluate)


def pipeline(split: Images, precision: Precision) -> Contender:
    """Return what the stage `train` does."""
    network, optimizer = pipeline_network(precision)
    train = partial(train_epoch, network, optimizer, split, BATCH, "epoch")
    return Contender(train, partial(in_chunks, network, split))


def peak(_: Images, dtype: torch.dtype) -> Contender:
    """Return products of large matrices in place of a training."""
    set_up_device(KIND)
    matrix = torch.randn(PEAK_SIDE, PEAK_SIDE, device=DEVICE).to(dtype)

    def multiply() -> object:
        for _ in range(PEAK_PRODUCTS):
            product = matrix @ matrix
        return product[0, 0].item()

    return Contender(multiply, lambda: None)


CONTENDERS: dict[str, Callable[[Images], Contender]] = {
    "notebook": notebook,
    "DataLoader": data_loader,
    **{step: partial(notebook, taken=ROAD[:end]) for end, step in enumerate(ROAD, start=1)},
    "pipeline fp32": partial(pipeline, precision="fp32"),
    "pipeline bf16": partial(pipeline, precision="bf16"),
    "peak fp32": partial(peak, dtype=torch.float32),
    "peak bf16": partial(peak, dtype=torch.bfloat16),
}


def plain_network(taken: Sequence[str] = ()) -> nn.Sequential:
    """Return the notebook's network as a user of PyTorch writes it, but for the steps taken."""
    convolution = (
        Convolution if SMALL_MAPS in taken else partial(nn.Conv2d, kernel_size=3, padding=1)
    )
    dropout = Dropout if MASKS in taken else nn.Dropout
    layers: list[nn.Module] = []
    units = 1
    for width in NETWORK.widths:
        if width == "M":
            layers.insert(len(layers) - (POOLING in taken), nn.MaxPool2d(2))
        else:
            layers += [convolution(units, width), nn.BatchNorm2d(width), nn.ReLU()]
            units = width
    layers.append(nn.Flatten())  # the poolings have left one pixel
    for width in NETWORK.hidden:
        layers += [nn.Linear(units, width), nn.ReLU(), dropout(ADAM.dropout)]
        units = width
    return nn.Sequential(*layers, nn.Linear(units, CLASSES))


def pipeline_network(precision: Precision) -> tuple[Network, torch.optim.Optimizer]:
    """Return the network and the optimizer as the stage `train` has them, on the device set up."""
    set_up_device(KIND)
    set_seed(0, epoch=0)
    network = vgg(NETWORK, SIDE, ADAM.activation, ADAM.dropout, "none", precision).to(DEVICE)
    return network, make_optimizer(network, ADAM)


def plain_epoch(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Sequence[torch.Tensor]],
) -> object:
    """Train for an epoch as a user of PyTorch writes it; return the loss of the last batch."""
    network.train()
    for images, labels in batches:
        optimizer.zero_grad()
        loss = cross_entropy(network(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return loss.item()


def in_chunks(network: nn.Module, split: Images) -> object:
    """Evaluate as the stage `train` does; return accuracy and loss."""
    scored = score(predict(network, split.images), split.labels)
    return scored.accuracy, scored.loss
