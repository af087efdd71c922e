"""The subset: which images are kept, in which order, and how they are padded."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest

from stages import subset
from stages.learning.idx import parse
from stages.learning.split import SPLITS, load_split
from stages.subset import PREFIX, choose
from stages.support.errors import InputError
from tests.conftest import CHECKOUT, idx
from tools.copies import plain_params, write_params

Bytes = npt.NDArray[np.uint8]
RAW, SUBSET = Path("data/raw"), Path("data/subset")


def random_split(seed: int, height: int, width: int) -> tuple[Bytes, Bytes]:
    """Images without a zero and labels, 4 to 9 of each digit, in random order."""
    random = np.random.default_rng(seed)
    counts = random.integers(4, 10, 10)
    labels = random.permutation(np.repeat(np.arange(10, dtype=np.uint8), counts))
    return random.integers(1, 256, (len(labels), height, width), np.uint8), labels


def plainly_chosen(
    labels: Sequence[int], classes: Sequence[int], per_class: int | Literal["all"]
) -> list[int]:
    """Positions of the images to keep, by walking through the file once for each class."""
    positions = []
    for digit in classes:
        seen = 0
        for position, label in enumerate(labels):
            if label == digit and (per_class == "all" or seen < per_class):
                positions.append(position)
                seen += 1
    return positions


def plainly_padded(image: Sequence[Sequence[int]], pad: int) -> list[list[int]]:
    edge = [[0] * (len(image[0]) + 2 * pad)] * pad
    return [*edge, *([0] * pad + list(row) + [0] * pad for row in image), *edge]


@pytest.mark.parametrize("pad", [0, 2, 5])
@pytest.mark.parametrize("per_class", [1, 3, "all"])
@pytest.mark.parametrize("classes", [tuple(range(10)), (7, 2), (9, 0, 4), (5,)])
def test_the_subset_is_what_a_plain_walk_through_the_file_keeps(
    classes: tuple[int, ...], per_class: int | Literal["all"], pad: int
) -> None:
    images, labels = random_split(len(classes), height=4, width=3)
    split = choose("train", images, labels, classes, per_class, pad)
    positions = plainly_chosen(labels.tolist(), classes, per_class)
    assert split.index.tolist() == positions
    assert split.labels.tolist() == [int(labels[position]) for position in positions]
    assert split.images.tolist() == [
        [plainly_padded(images[position].tolist(), pad)] for position in positions
    ]


def test_index_leads_to_the_source_image_and_the_border_is_zero() -> None:
    images, labels = random_split(0, height=28, width=28)
    split = choose("train", images, labels, (3, 8, 1), 4, pad=2)
    assert (split.images[:, 0, 2:-2, 2:-2] == images[split.index]).all()
    assert (labels[split.index] == split.labels).all()
    # No pixel of the source is zero, so the border is what is.
    assert ((split.images[:, 0] == 0).sum(axis=(1, 2)) == 32**2 - 28**2).all()


def test_images_are_uint8_with_a_channel_and_labels_and_index_int64() -> None:
    images, labels = random_split(0, height=28, width=28)
    split = choose("train", images, labels, (3, 8, 1), 4, pad=2)
    kinds = [(str(values.dtype), values.shape) for values in vars(split).values()]
    assert kinds == [("uint8", (12, 1, 32, 32)), ("int64", (12,)), ("int64", (12,))]


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
    with pytest.raises(InputError, match=f"train: {len(images)} images but {len(labels) - 1} lab"):
        choose("train", images, labels[:-1], (1,), 1, pad=2)


IMAGES, LABELS = random_split(1, height=28, width=28)
COUNT = len(LABELS)
DAMAGED = {
    "empty": ("images", b"", "not an IDX file of its kind: begins with b''"),
    "only a part of the header": ("images", idx(IMAGES)[:15], "not an IDX file"),
    "truncated images": ("images", idx(IMAGES)[:-1], f"{COUNT * 784 - 1} values for {COUNT} items"),
    "truncated labels": ("labels", idx(LABELS)[:-1], f"{COUNT - 1} values for {COUNT} items"),
    "too long": ("labels", idx(LABELS) + b"\0", f"{COUNT + 1} values for {COUNT} items"),
    "HTML": ("labels", b"<!DOCTYPE html>", "not an IDX file of its kind: begins with b'<!DOC"),
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


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with params.yaml and a small data/raw/."""
    monkeypatch.chdir(tmp_path)
    keep(per_class=2, classes=[4, 1])
    RAW.mkdir(parents=True)
    for seed, prefix in enumerate(PREFIX.values()):
        images, labels = random_split(seed, height=28, width=28)
        (RAW / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (RAW / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def keep(**data: object) -> None:
    """Write params.yaml into the current folder, with other values of `data`."""
    params = plain_params(CHECKOUT)
    params["data"] |= {"pad": 2, **data}
    params["network"]["widths"] = [8]  # fits images of any size
    params["dataset"] = "small"
    params["datasets"]["small"] = {"sources": ["data/small"]}
    write_params(Path(), params)


def below(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
    }


@pytest.mark.usefixtures("work")
def test_the_stage_writes_both_splits_and_the_same_bytes_each_time() -> None:
    subset.main(RAW, SUBSET)
    once = below(SUBSET)
    assert once.keys() == {f"{name}.safetensors" for name in SPLITS}
    for seed, name in enumerate(SPLITS):
        images, labels = random_split(seed, height=28, width=28)
        expected = choose(name, images, labels, (4, 1), 2, pad=2)
        written = load_split(SUBSET, name)
        for field, values in vars(expected).items():
            assert (getattr(written, field) == values).all()
    subset.main(RAW, SUBSET)
    assert below(SUBSET) == once


@pytest.mark.usefixtures("work")
def test_what_is_kept_and_how_it_is_padded_are_parameters() -> None:
    keep(per_class="all", classes=[9], pad=0)
    subset.main(RAW, SUBSET)
    images, labels = random_split(1, height=28, width=28)
    assert (load_split(SUBSET, "test").images[:, 0] == images[labels == 9]).all()


def require_refusal(work: Path, reason: str) -> None:
    before = below(work)
    with pytest.raises((InputError, FileNotFoundError), match=reason):
        subset.main(RAW, SUBSET)
    assert below(work) == before


def test_to_ask_for_too_many_is_told_and_writes_nothing(work: Path) -> None:
    keep(per_class=10)
    require_refusal(work, r"params\.yaml: data\.per_class: 10: the train split has only ")


def test_a_truncated_file_is_named_and_nothing_written(work: Path) -> None:
    path = RAW / "t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    require_refusal(work, f"^{path}: is not whole")


def test_a_file_with_another_digest_than_params_yaml_is_named_and_nothing_written(
    work: Path,
) -> None:
    path = RAW / "train-images-idx3-ubyte"
    params = plain_params(Path())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    params["datasets"]["small"]["sha256"] = {path.name: digest}
    write_params(Path(), params)
    subset.main(RAW, Path("data/whole"))
    content = bytearray(path.read_bytes())
    content[3000:3006] = bytes(6)
    path.write_bytes(content)
    found = hashlib.sha256(content).hexdigest()
    require_refusal(work, f"^{path}: has SHA-256 {found}, params.yaml wants {digest}; ")


def test_a_missing_file_is_named_and_nothing_written(work: Path) -> None:
    (RAW / "train-labels-idx1-ubyte").unlink()
    require_refusal(work, "data/raw/train-labels-idx1-ubyte")


def test_the_old_subset_stays_where_a_new_one_cannot_be_made(work: Path) -> None:
    subset.main(RAW, SUBSET)
    (RAW / "t10k-labels-idx1-ubyte").write_bytes(b"")
    require_refusal(work, "t10k-labels-idx1-ubyte: is not an IDX file")
