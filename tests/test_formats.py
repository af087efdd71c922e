"""What stages/support could change unnoticed: the bytes of files, and what is read from them.

No stage depends on stages/support, so an edit there makes nothing anew. Whoever must change a
result that stands here raises FORMAT in stages/learning/split.py, on which the stages that train,
evaluate and compare depend.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import BaseModel

from stages import subset
from stages.learning.history import EpochRow
from stages.learning.split import load_split
from stages.support.atomic import write_json
from stages.support.params import load_params
from stages.support.tables import read_record, read_table, write_table
from stages.support.tensors import read_tensors, write_tensors
from tests.conftest import idx

PARAMS = """\
dataset: mine
variant: plain
seeds: [0, 4294967295]
data: {per_class: 2, pad: 3, scale: half, classes: [5, 3]}
network:
  batch_norm_momentum: 0.1
  widths:
  - 8
  - M
  - 0x10
  hidden: []
train: {epochs: 1_0, batch_size: 64, device: auto, precision: bf16}
variants:
  plain: {activation: relu, dropout: 0, optimizer: sgd, lr: 1e-05, momentum: 0.9}
  no: {activation: sigmoid, dropout: .5, optimizer: adam, lr: 1}
datasets:
  mine: {sources: [data/mine]}
"""
SUBSET = {
    "train": "78ab3a9f45ace121dde740b4cbcf25217ab6b75c6f87fc231df4f5bc8af8fc51",
    "test": "64af781f2b3bef719c16601dfde264ee792271f0b0c0fc576c06be078a09958b",
}
TENSORS = "ebeebea59b7f296f2f266117782efe6758d6452f2c23ac8d1aa0e039a547915d"


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write params.yaml into the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(PARAMS, encoding="utf-8")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.usefixtures("params")
def test_a_subset_is_these_bytes() -> None:
    raw, chosen = Path("raw"), Path("subset")
    raw.mkdir()
    for number, prefix in enumerate(("train", "t10k")):
        labels = np.array([3, 5, 0, 5, 3, 5, 3], np.uint8)
        images = (np.arange(7 * 28 * 28) % (251 - number)).reshape(7, 28, 28).astype(np.uint8)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(labels))
    subset.main(raw, chosen)
    assert {name: sha256(chosen / f"{name}.safetensors") for name in SUBSET} == SUBSET
    split = load_split(chosen, "train")
    assert (split.index.tolist(), split.labels.tolist()) == ([1, 3, 0, 4], [5, 5, 3, 3])
    assert split.images.shape == (4, 1, 34, 34)
    assert split.images[0, 0, 3, 3:6].tolist() == [784 % 251, 785 % 251, 786 % 251]


def test_a_file_of_tensors_is_these_bytes(tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    tensors: dict[str, npt.NDArray[Any]] = {
        "b.weight": np.array([[1 / 3, -0.0, math.inf], [math.nan, 1e-30, -1]], np.float32).T,
        "a.count": np.array(7, np.int64),
        "a.pixels": np.arange(256, dtype=np.uint8),
        "none": np.zeros((0, 3), np.float64),
    }
    description = {"variant": "ü", "seed": 0, "lr": 1e-05, "third": 1 / 3, "widths": [8, "M", 8]}
    write_tensors(path, tensors, description)
    assert sha256(path) == TENSORS
    read, described = read_tensors(path)
    assert described == description
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape)
        assert read[name].tobytes() == np.asarray(tensor, order="C").tobytes()


class Row(BaseModel):
    """A row with a column of each kind."""

    name: str
    count: int
    value: float
    nothing: float


def test_a_row_that_is_older_than_a_column_has_an_empty_cell_there(tmp_path: Path) -> None:
    write_table(tmp_path / "table.csv", [{"epoch": 1}, {"epoch": 2, "cores": 4}])
    assert (tmp_path / "table.csv").read_text(encoding="utf-8") == "epoch,cores\n1,\n2,4\n"


def test_a_table_is_this_text_and_reads_back_as_the_same_numbers(tmp_path: Path) -> None:
    values = [1 / 3, 1e-300, -0.0, 0.1 + 0.2, 1e22, 2**53 + 1.0, math.inf]
    rows = [
        {"name": f"a, b {n}", "count": 10**n, "value": value, "nothing": math.nan}
        for n, value in enumerate(values)
    ]
    path = tmp_path / "table.csv"
    write_table(path, rows)
    assert path.read_bytes().decode() == (
        "name,count,value,nothing\n"
        '"a, b 0",1,0.3333333333333333,nan\n'
        '"a, b 1",10,1e-300,nan\n'
        '"a, b 2",100,-0.0,nan\n'
        '"a, b 3",1000,0.30000000000000004,nan\n'
        '"a, b 4",10000,1e+22,nan\n'
        '"a, b 5",100000,9007199254740992.0,nan\n'
        '"a, b 6",1000000,inf,nan\n'
    )
    # As text, since no NaN equals another and -0.0 equals 0.0.
    assert str([row.model_dump() for row in read_table(path, Row)]) == str(rows)


def test_a_history_is_read_with_its_layers_in_order(tmp_path: Path) -> None:
    path = tmp_path / "0.csv"
    row = {
        "epoch": 1,
        "train_accuracy": 2 / 3,
        "train_loss": math.nan,
        "test_accuracy": 0.0,
        "test_loss": math.inf,
        "seen_accuracy": 1.0,
        "seen_loss": 1e-05,
        "gradient_conv1": 1 / 3,
        "gradient_linear1": 0.0,
        "gradient_conv10": 3.0,
    }
    write_table(path, [row])
    (read,) = read_table(path, EpochRow)
    assert str(read.model_dump()) == str(row)
    assert [*read.gradients.items()] == [("conv1", 1 / 3), ("linear1", 0.0), ("conv10", 3.0)]


class Record(BaseModel):
    """A record with a key of each kind."""

    value: float
    nothing: float | None
    epoch: int | float


def test_a_record_is_this_text_and_reads_back_as_the_same_numbers(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json(path, {"value": 1 / 3, "nothing": None, "epoch": 7})
    assert path.read_bytes() == (
        b'{\n  "value": 0.3333333333333333,\n  "nothing": null,\n  "epoch": 7\n}\n'
    )
    assert read_record(path, Record) == Record(value=1 / 3, nothing=None, epoch=7)


@pytest.mark.usefixtures("params")
def test_parameters_mean_this() -> None:
    read = load_params()
    adam = {"activation": "sigmoid", "dropout": 0.5, "optimizer": "adam", "lr": 1.0}
    plain = {"activation": "relu", "dropout": 0.0, "optimizer": "sgd", "lr": 1e-05, "momentum": 0.9}
    data = {"per_class": 2, "pad": 3, "classes": [5, 3], "scale": "half"}
    network = {"widths": [8, "M", 16], "hidden": [], "batch_norm_momentum": 0.1}
    assert read.model_dump(mode="json") == {
        "datasets": {"mine": {"sources": ["data/mine"], "sha256": {}}},
        "dataset": "mine",
        "data": data,
        "network": network,
        "train": {"epochs": 10, "batch_size": 64, "device": "auto", "precision": "bf16"},
        "variants": {"plain": plain, "no": adam | {"momentum": None}},
        "variant": "plain",
        "seeds": [0, 4294967295],
    }
    assert (read.data.side, read.network.poolings) == (34, 1)
    # This text is in every weights file and checkpoint.
    named = {"variant": "plain", "seed": 0, "dataset": "mine"}
    assert json.dumps(read.training("plain", 0)) == json.dumps(
        named | data | network | plain | {"batch_size": 64}
    )
