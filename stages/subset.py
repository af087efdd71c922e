"""Build the padded, balanced subset of both splits."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from stages.learning.idx import parse
from stages.learning.split import Split, save_split
from stages.support.atomic import replacing_folder
from stages.support.cache import damaged
from stages.support.errors import InputError, unusable
from stages.support.params import load_params

PREFIX = {"train": "train", "test": "t10k"}  # of MNIST's file names


def main(raw: Path, subset: Path) -> None:
    """Build the padded, balanced subset of both splits.

    Args:
        raw: the folder with the four IDX files.
        subset: the folder to write, with train.safetensors and test.safetensors.
    """
    params = load_params()
    data = params.data
    sha256 = {str(name): digest for name, digest in params.datasets[params.dataset].sha256.items()}
    splits = {}
    for name, prefix in PREFIX.items():
        images, labels = (
            read(path, sha256)
            for path in (raw / f"{prefix}-images-idx3-ubyte", raw / f"{prefix}-labels-idx1-ubyte")
        )
        splits[name] = choose(name, images, labels, data.classes, data.per_class, data.pad)
    with replacing_folder(subset) as folder:
        for name, split in splits.items():
            save_split(folder / f"{name}.safetensors", split)
            print(f"{name}: {len(split.labels)} images, {split.images.shape} uint8")


def read(path: Path, sha256: Mapping[str, str]) -> npt.NDArray[np.uint8]:
    """Return what an IDX file holds.

    Args:
        path: of the file.
        sha256: digests by the names of files; a file may have none.

    Raises:
        InputError: the file is missing, is no IDX file of its kind, or has another digest. Without
            a digest to compare, a file that comes from a damaged object of DVC's cache is refused.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise unusable(path, error.strerror) from None
    found = hashlib.sha256(content).hexdigest()
    if sha256.get(path.name, found) != found:
        raise unusable(path, f"has SHA-256 {found}, params.yaml wants {sha256[path.name]}")
    if path.name not in sha256 and damaged(path):
        raise unusable(path, "damaged")
    try:
        return parse(str(path), content)
    except InputError as error:
        raise unusable(path, str(error).removeprefix(f"{path} ")) from None


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
        raise InputError(
            f"{name}: {len(images)} images but {len(labels)} labels: make the files anew, take the "
            "sha256 of the data set out of params.yaml, then `dvc repro`"
        )
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
    height, width = images.shape[1:]
    padded = np.zeros((len(index), 1, height + 2 * pad, width + 2 * pad), np.uint8)
    # Indexing copies. Class by class, the copies stay small; in one piece, they double the memory.
    for part, room in zip(kept, np.split(padded, np.cumsum([*map(len, kept)])[:-1]), strict=True):
        room[:, 0, pad : pad + height, pad : pad + width] = images[part]
    return Split(padded, labels[index].astype(np.int64), index)
