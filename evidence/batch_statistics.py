"""BatchNorm's statistics: gathered beside a training, averaged in two ways, put to use.

The statistics of a network are one vector, float64: for each BatchNorm layer, first to last, the
mean of every channel, then the variance of every channel. The variance is the unbiased one (divided
by n - 1), as in PyTorch's running statistics.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.functional import batch_norm
from torch.utils.hooks import RemovableHandle

from stages.learning.inference import Images, predict, score


def norms(network: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the BatchNorm layers, first to last."""
    return [layer for layer in network.children() if isinstance(layer, nn.BatchNorm2d)]


def watch(network: nn.Module, receive: Callable[[torch.Tensor], None]) -> list[RemovableHandle]:
    """Call `receive` with the statistics of every batch in training mode, and change nothing."""
    layers, parts = norms(network), list[torch.Tensor]()

    def note(layer: nn.Module, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
        if not layer.training:
            return
        mean, variance = torch.zeros(2, inputs[0].shape[1])
        with torch.no_grad():
            # With a momentum of 1, PyTorch's running statistics become those of this batch.
            batch_norm(inputs[0], mean, variance, training=True, momentum=1.0)
        parts.extend((mean.double(), variance.double()))
        if layer is layers[-1]:
            receive(torch.cat(parts))
            parts.clear()

    return [layer.register_forward_hook(note) for layer in layers]


def moving(batches: Sequence[torch.Tensor], momentum: float) -> torch.Tensor:
    """Return the exponential average of the batches' statistics, first batch to last.

    The average starts at zero and is corrected for that: after t batches their weights sum to
    1 - (1 - momentum)^t, and the average is divided by the sum. Source: Kingma and Ba, Adam, arXiv
    1412.6980, section 3.
    """
    age = torch.arange(len(batches) - 1, -1, -1, dtype=torch.float64)
    weights = (1 - momentum) ** age
    return weights / weights.sum() @ torch.stack([*batches])


def batches_now(
    network: nn.Module, images: torch.Tensor, batch_size: int, generator: torch.Generator
) -> list[torch.Tensor]:
    """Return the statistics of all batches of the shuffled images, with the weights as they are.

    As in training, each batch is normalised by its own mean and variance. Dropout is off. Pass a
    copy of the network, since its running statistics and its mode change.
    """
    network.eval()
    for layer in norms(network):
        layer.train()
    batches: list[torch.Tensor] = []
    handles = watch(network, batches.append)
    with torch.no_grad():
        for batch in torch.split(torch.randperm(len(images), generator=generator), batch_size):
            network(images[batch])
    for handle in handles:
        handle.remove()
    return batches


def frozen(batches: Sequence[torch.Tensor], count: int | None) -> torch.Tensor:
    """Return the plain mean over the first `count` batches, None for all, of `batches_now`.

    Source: PreciseBN, Wu and Johnson, arXiv 2105.07576. The variance is averaged like the mean.
    """
    return torch.stack([*batches[:count]]).mean(dim=0)


def accuracy(network: nn.Module, statistics: torch.Tensor, images: Images) -> float:
    """Return the accuracy in evaluation mode with the statistics, which the network then has."""
    sizes = [layer.num_features for layer in norms(network) for _ in ("mean", "variance")]
    parts = iter(torch.split(statistics, sizes))
    for layer in norms(network):
        for running in (layer.running_mean, layer.running_var):
            assert running is not None  # as PyTorch makes the layer by default
            running.copy_(next(parts))
    return score(predict(network, images.images), images.labels).accuracy
