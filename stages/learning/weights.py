"""Trained weights as files that say which network they belong to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel

from stages.learning.network import Network, vgg
from stages.support.errors import InputError, unusable
from stages.support.params import Architecture, Data, Variant
from stages.support.tensors import read_tensors, write_tensors

Section = TypeVar("Section", bound=BaseModel)


def save_weights(path: Path, network: Network, description: Mapping[str, object]) -> None:
    """Write the network's weights and their description.

    Args:
        path: of the file.
        network: as `vgg` returned it.
        description: `Params.training`, which `load_network` needs, the precision, and more.
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
        network = untrained(described)
    except (KeyError, TypeError, ValueError) as error:  # a RuntimeError may be a lack of memory
        raise _not_ours(path, error) from None
    try:
        network.load_state_dict({name: torch.from_numpy(x) for name, x in tensors.items()})
    except RuntimeError as error:
        raise _not_ours(path, error) from None
    return network


def untrained(description: Mapping[str, Any]) -> Network:
    """Return the network of a description before its training.

    Args:
        description: `Params.training`, and the precision.
    """
    data = _section(Data, description)
    variant = _section(Variant, description)
    return vgg(
        _section(Architecture, description),
        data.side,
        variant.activation,
        variant.dropout,
        data.scale,
        description["precision"],
    )


def _section(kind: type[Section], description: Mapping[str, Any]) -> Section:
    """Return a section of params.yaml from the description, which has all of them in one."""
    known = {key: description[key] for key in kind.model_fields if key in description}
    return kind.model_validate(known)


def _not_ours(path: Path, error: Exception) -> InputError:
    return unusable(path, f"does not hold our network ({' '.join(str(error).split()):.200})")
