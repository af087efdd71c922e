"""Files of tensors: safetensors, which never execute what they hold, with a digest of it all."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from stages.lib.command import InputError
from stages.lib.files import replacing

# Not every OSError: a file that may not be read is not to be replaced.
MISSING = (FileNotFoundError, IsADirectoryError)

Tensors = Mapping[str, npt.NDArray[Any]]


def write_tensors(path: Path, tensors: Tensors, description: Mapping[str, object]) -> None:
    """Write tensors by name, and what they are as JSON under the metadata key "description".

    A single metadata key, because safetensors writes several in random order.
    """
    ordered = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    text = json.dumps({**description, "sha256": _digest(ordered, description)})
    with replacing(path) as temporary:
        save_file(ordered, temporary, {"description": text})


def read_tensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """Return what `write_tensors` wrote: the tensors, and their description.

    Raises:
        InputError: the file is missing, of another kind, or not as it was written.
        OSError: it cannot be read.
    """
    try:
        path.open("rb").close()  # safe_open takes whatever it cannot open for missing
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            description = json.loads(file.metadata()["description"])
        sha256 = description.pop("sha256")
    except (*MISSING, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path}: not readable as a file of ours ({error}); `dvc repro` makes it anew"
        ) from None
    if sha256 != _digest(tensors, description):
        raise InputError(f"{path}: damaged, its digest is another; `dvc repro` makes it anew")
    return tensors, description


def _digest(tensors: Tensors, description: Mapping[str, object]) -> str:
    digest = hashlib.sha256(json.dumps(description).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
