"""Trained weights as safetensors, which never execute what they hold."""

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from stages.lib.command import InputError


def save_weights(path: Path, network: nn.Module, description: dict[str, object]) -> None:
    """Write the network's weights, with what is needed to use them as JSON under "description".

    A single metadata key, because safetensors writes several in random order.
    """
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, path, {"description": json.dumps(description)})


def load_weights(path: Path, network: nn.Module) -> None:
    """Put the weights of the file into the network.

    Raises:
        InputError: the file is missing, damaged, or of another network.
    """
    try:
        network.load_state_dict(load_file(path))
    except (FileNotFoundError, SafetensorError, RuntimeError) as error:
        raise InputError(
            f"{path}: {' '.join(str(error).split()):.200}; `dvc repro` makes it anew"
        ) from None
