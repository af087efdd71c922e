"""The padded, balanced subset: choosing it, writing it and reading it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from stages.lib.command import InputError
from stages.lib.tensorfile import read_tensors, write_tensors

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Split:
    """One split of the subset."""

    images: npt.NDArray[np.uint8]  # (N, 1, side, side), 0..255
    labels: npt.NDArray[np.int64]  # (N)
    index: npt.NDArray[np.int64]  # (N), position in the source file


def choose(
    name: str,
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
    classes: Sequence[int],
    per_class: int | Literal["all"],
    pad: int,
) -> Split:
    """Keep the first `per_class` images of each class in file order, class after class, padded.

    Args:
        name: of the split, for the error.
        images: (N, height, width).
        labels: (N).
        classes: the labels to keep, in the order wanted.
        per_class: how many of each.
        pad: zeros added on every side, in pixels.

    Raises:
        InputError: a class has fewer images than asked for, or none.
    """
    if len(images) != len(labels):
        raise InputError(f"{name}: {len(images)} images but {len(labels)} labels")
    of_class = {digit: np.flatnonzero(labels == digit) for digit in classes}
    scarcest = min(classes, key=lambda digit: len(of_class[digit]))
    available = len(of_class[scarcest])
    if available < (1 if per_class == "all" else per_class):
        raise InputError(
            f"params.yaml: data.per_class: {per_class}: the {name} split has only {available} "
            f"images of class {scarcest}; ask for fewer, or leave it out of data.classes"
        )
    count = None if per_class == "all" else per_class
    kept = [of_class[digit][:count] for digit in classes]
    index = np.concatenate(kept)
    padded = np.zeros((len(index), 1, *(side + 2 * pad for side in images.shape[1:])), np.uint8)
    # Class by class: what is chosen by index is copied, and a copy of all would double the memory.
    for part, room in zip(kept, np.split(padded, np.cumsum([*map(len, kept)])[:-1]), strict=True):
        room[:, 0, pad:-pad, pad:-pad] = images[part]
    return Split(padded, labels[index].astype(np.int64), index)


def save_split(path: Path, split: Split) -> None:
    """Write a split's images, labels and index."""
    write_tensors(path, vars(split), {})


def load_split(folder: Path, name: str) -> Split:
    """Read the split `name` from the folder that the subset stage wrote.

    Raises:
        InputError: the file is missing, damaged or of another kind.
    """
    path = folder / f"{name}.safetensors"
    tensors, _ = read_tensors(path)
    try:
        return Split(**tensors)
    except TypeError as error:
        raise InputError(f"{path}: {error}; `dvc repro subset` makes it anew") from None
