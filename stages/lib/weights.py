"""Trained weights as files."""

from pathlib import Path

import torch
from torch import nn

from stages.lib.command import InputError
from stages.lib.tensorfile import read_tensors, write_tensors


def save_weights(path: Path, network: nn.Module, description: dict[str, object]) -> None:
    """Write the network's weights, with what is needed to use them."""
    state = network.state_dict().items()
    write_tensors(path, {name: tensor.cpu().numpy() for name, tensor in state}, description)


def load_weights(path: Path, network: nn.Module) -> None:
    """Put the weights of the file into the network.

    Raises:
        InputError: the file is missing, damaged, or of another network.
    """
    tensors, _ = read_tensors(path)
    try:
        network.load_state_dict({name: torch.from_numpy(x) for name, x in tensors.items()})
    except RuntimeError as error:
        raise InputError(
            f"{path}: {' '.join(str(error).split()):.200}; `dvc repro` makes it anew"
        ) from None
