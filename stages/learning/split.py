"""A split of the subset, and its file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.support.errors import unusable
from stages.support.tensors import read_tensors, write_tensors

# The version of the files that the stages exchange. Who has to change a golden test of
# tests/test_formats.py raises this number, so that the files are made anew in the new format.
FORMAT = 1

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Split:
    """One split of the subset."""

    images: npt.NDArray[np.uint8]  # (N, 1, side, side), 0..255
    labels: npt.NDArray[np.int64]  # (N)
    index: npt.NDArray[np.int64]  # (N), position in the source file


def save_split(path: Path, split: Split) -> None:
    """Write a split's images, labels and index."""
    write_tensors(path, vars(split), {})


def load_split(folder: Path, name: str) -> Split:
    """Read the split `name` from the folder that the stage `subset` wrote.

    Raises:
        InputError: the file is missing, damaged or of another kind.
    """
    path = folder / f"{name}.safetensors"
    tensors, _ = read_tensors(path)
    try:
        return Split(**tensors)
    except TypeError as error:
        raise unusable(path, error) from None
