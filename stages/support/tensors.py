"""Files of tensors: safetensors, which execute nothing when read, with a digest of everything."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from stages.support.atomic import replacing
from stages.support.errors import unusable

# What reading a file of another kind, or a folder, raises. PermissionError is not among these,
# since such a file may be whole.
NOT_OURS = (
    SafetensorError,
    IsADirectoryError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
)

Arrays = Mapping[str, npt.NDArray[Any]]


def write_tensors(path: Path, tensors: Arrays, description: Mapping[str, object]) -> None:
    """Write tensors by name, and their description as JSON.

    The description and the digest share one metadata key, "description", because safetensors writes
    several keys in random order.
    """
    ordered = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    text = json.dumps({**description, "sha256": _content_sha256(ordered, description)})
    with replacing(path) as temporary:
        save_file(ordered, temporary, {"description": text})


def read_tensors(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """Return what `write_tensors` wrote: the tensors, and their description.

    Raises:
        InputError: the file is missing, of another kind, or not as it was written.
        OSError: it cannot be read.
    """
    try:
        path.open("rb").close()  # safe_open reports every file that it cannot open as missing
        with safe_open(path, "numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            description = json.loads(file.metadata()["description"])
        sha256 = description.pop("sha256")
    except FileNotFoundError as error:
        raise unusable(path, error.strerror) from None
    except NOT_OURS as error:
        raise unusable(path, f"is not one of this pipeline's tensor files ({error})") from None
    if sha256 != _content_sha256(tensors, description):
        raise unusable(path, "damaged, its digest is another")
    return tensors, description


def _content_sha256(tensors: Arrays, description: Mapping[str, object]) -> str:
    digest = hashlib.sha256(json.dumps(description).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
