"""Trained weights as files."""

from pathlib import Path

import torch

from stages.lib.command import InputError
from stages.lib.network import Network, vgg11
from stages.lib.tensorfile import read_tensors, write_tensors


def save_weights(path: Path, network: Network, description: dict[str, object]) -> None:
    """Write the network's weights, with what `load_network` needs, and whatever else to describe.

    Args:
        path: of the file.
        network: as `vgg11` returned it.
        description: what `vgg11` was given, by the names of its arguments, and more.
    """
    state = network.state_dict().items()
    write_tensors(path, {name: tensor.cpu().numpy() for name, tensor in state}, description)


def load_network(path: Path) -> Network:
    """Return the network of the file, as it was trained, on the CPU.

    Raises:
        InputError: the file is missing, damaged, or of something else.
    """
    tensors, described = read_tensors(path)
    try:
        arguments = (described[key] for key in ("activation", "dropout", "scale", "precision"))
        network = vgg11(*arguments)
    except (KeyError, TypeError, ValueError) as error:  # a RuntimeError may be out of memory
        raise _not_ours(path, error) from None
    try:
        network.load_state_dict({name: torch.from_numpy(x) for name, x in tensors.items()})
    except RuntimeError as error:
        raise _not_ours(path, error) from None
    return network


def _not_ours(path: Path, error: Exception) -> InputError:
    return InputError(
        f"{path} does not hold our network: {' '.join(str(error).split()):.200}; "
        "`dvc repro` makes it anew"
    )
