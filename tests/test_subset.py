"""The subset: which images are kept, in which order, and how they are padded."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest

from stages import subset
from stages.learning.idx import parse
from stages.subset import PREFIX, choose
from stages.support.errors import InputError
from tests.conftest import CHECKOUT, idx
from tools.copies import plain_params, write_params

Bytes = npt.NDArray[np.uint8]


def random_split(seed: int, height: int, width: int) -> tuple[Bytes, Bytes]:
    """Return images without a zero and labels, 4 to 9 of each digit, in random order."""
    random = np.random.default_rng(seed)
    counts = random.integers(4, 10, 10)
    labels = random.permutation(np.repeat(np.arange(10, dtype=np.uint8), counts))
    return random.integers(1, 256, (len(labels), height, width), np.uint8), labels


@pytest.mark.parametrize("pad", [0, 2])
@pytest.mark.parametrize("per_class", [1, 3, "all"])
@pytest.mark.parametrize("classes", [tuple(range(10)), (7, 2), (5,)])
def test_the_subset_is_the_first_images_of_each_class_in_file_order_with_a_black_border(
    classes: tuple[int, ...], per_class: int | Literal["all"], pad: int
) -> None:
    images, labels = random_split(len(classes), height=4, width=3)
    split = choose("train", images, labels, classes, per_class, pad)
    positions: list[int] = []
    for digit in classes:
        of_class = [position for position, label in enumerate(labels) if label == digit]
        positions += of_class if per_class == "all" else of_class[:per_class]
    assert split.index.tolist() == positions
    assert split.labels.tolist() == labels[positions].tolist()
    padded = np.pad(images[positions], ((0, 0), (pad, pad), (pad, pad)))
    assert np.array_equal(split.images, padded[:, None])
    assert [str(values.dtype) for values in vars(split).values()] == ["uint8", "int64", "int64"]


@pytest.mark.parametrize(("per_class", "available"), [(3, 2), ("all", 0)])
def test_too_few_images_are_told_with_class_split_and_number(
    per_class: int | Literal["all"], available: int
) -> None:
    labels = np.array([1, 1, 1] + [6] * available, np.uint8)
    images = np.ones((len(labels), 4, 4), np.uint8)
    reason = f"data.per_class: {per_class}: the test split has only {available} images of class 6"
    with pytest.raises(InputError, match=reason):
        choose("test", images, labels, (1, 6), per_class, pad=2)


def test_other_numbers_of_images_and_labels_are_an_error() -> None:
    images, labels = random_split(0, height=4, width=4)
    told = f"train: {len(images)} images but {len(labels) - 1} labels: make the files anew"
    with pytest.raises(InputError, match=told):
        choose("train", images, labels[:-1], (1,), 1, pad=2)


IMAGES, LABELS = random_split(1, height=28, width=28)
COUNT = len(LABELS)
DAMAGED = {
    "empty": ("images", b"", "not an IDX file of its kind: begins with b''"),
    "only a part of the header": ("images", idx(IMAGES)[:15], "not an IDX file"),
    "truncated": ("images", idx(IMAGES)[:-1], f"{COUNT * 784 - 1} values for {COUNT} items"),
    "too long": ("labels", idx(LABELS) + b"\0", f"{COUNT + 1} values for {COUNT} items"),
    "labels for images": ("images", idx(LABELS), "not an IDX file of its kind"),
    "images for labels": ("labels", idx(IMAGES), "not an IDX file of its kind"),
    "other pixels than bytes": ("images", b"\0\0\x0d\3" + idx(IMAGES)[4:], "not an IDX file"),
    "other size": ("images", idx(IMAGES[:, 1:]), r"images of \[27, 28\], must be \[28, 28\]"),
    "a label too high": ("labels", idx(LABELS + np.uint8(1)), "label 10, must be below 10"),
}


@pytest.mark.parametrize(("kind", "content", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_idx_file_is_told_by_name(kind: str, content: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=f"^a-{kind}-file .*{reason}"):
        parse(f"a-{kind}-file", content)


def test_the_file_name_decides_what_must_be_in_it_and_not_its_folder() -> None:
    assert (parse("images/train-labels-idx1-ubyte", idx(LABELS)) == LABELS).all()
    assert (parse("labels/train-images-idx3-ubyte", idx(IMAGES)) == IMAGES).all()


RAW, SUBSET = Path("data/raw"), Path("data/subset")
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES = (
    RAW / f"{name}-ubyte" for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3")
)


def write_small_params() -> None:
    """Write params.yaml into the current folder, with the digest of one of the raw files."""
    params = plain_params(CHECKOUT)
    params["data"] |= {"pad": 2, "classes": [4, 1], "per_class": 2}
    params["network"]["widths"] = [8]  # fits images of any size
    sha256 = {TRAIN_IMAGES.name: hashlib.sha256(idx(IMAGES)).hexdigest()}
    params["datasets"]["small"] = {"sources": ["data/small"], "sha256": sha256}
    write_params(Path(), params | {"dataset": "small"})


def damage_dvcs_copy() -> None:
    """Leave changed labels, without a digest in params.yaml, as a damaged object of DVC's cache."""
    out = {"path": str(TRAIN_LABELS), "md5": hashlib.md5(idx(LABELS)).hexdigest()}
    Path("dvc.lock").write_text(json.dumps({"stages": {"download": {"outs": [out]}}}))
    cached = Path(".dvc/cache/files/md5", out["md5"][:2], out["md5"][2:])
    cached.parent.mkdir(parents=True)
    for file in (cached, TRAIN_LABELS):
        file.write_bytes(idx(LABELS[::-1]))


CHANGED = idx(IMAGES)[:3000] + bytes(6) + idx(IMAGES)[3006:]
REFUSED: dict[str, tuple[Callable[[], object], str]] = {  # what happens, and what is told
    "truncated": (
        lambda: TEST_IMAGES.write_bytes(idx(IMAGES)[:-1]),
        f"{TEST_IMAGES}: is not whole",
    ),
    "changed": (
        lambda: TRAIN_IMAGES.write_bytes(CHANGED),
        f"{TRAIN_IMAGES}: has SHA-256 {hashlib.sha256(CHANGED).hexdigest()}, params.yaml wants "
        f"{hashlib.sha256(idx(IMAGES)).hexdigest()}; ",
    ),
    "damaged in DVC's cache": (
        damage_dvcs_copy,
        f"{TRAIN_LABELS}: damaged; DVC's copy is damaged too: `rm -f {TRAIN_LABELS} ",
    ),
}


@pytest.mark.parametrize(("happens", "told"), REFUSED.values(), ids=REFUSED)
def test_what_makes_no_subset_is_told_and_the_old_one_stays(
    happens: Callable[[], object], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    RAW.mkdir(parents=True)
    for prefix in PREFIX.values():
        (RAW / f"{prefix}-images-idx3-ubyte").write_bytes(idx(IMAGES))
        (RAW / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(LABELS))
    write_small_params()
    subset.main(RAW, SUBSET)
    subprocess.run(["dvc", "init", "--quiet", "--no-scm"], check=True)
    happens()
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(InputError) as caught:
        subset.main(RAW, SUBSET)
    assert str(caught.value).startswith(told)
    after = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    assert after == before
