"""A training goes on from its checkpoint, to the bit; from any other state it never does."""

import csv
import inspect
import io
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, repeat
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stages import train
from stages.learning import loop
from stages.learning.device import choose_precision
from stages.learning.history import EpochRow
from stages.learning.split import SPLITS, load_split, save_split
from stages.learning.weights import untrained
from stages.subset import choose
from stages.support import checkpoints, machine
from stages.support.checkpoints import Progress, checkpoint_path
from stages.support.errors import GOES_ON, InputError
from stages.support.params import load_params
from stages.support.tables import write_table
from stages.support.tensors import read_tensors, write_tensors
from tests.conftest import CHECKOUT, Project
from tools.copies import TINY, plain_params, write_params

RATE = 0.01  # of the variants with sgd
ANEW = "starts with epoch 1\n"
EVERY_EPOCH, HARDLY_EVER = 0.0, 1e9  # costs between saves
ENDLESS = 1_000_000  # epochs


@dataclass(frozen=True)
class Place(Project):
    """A folder that a training works in; the code is the checkout's."""

    def train(self, variant: str, costs_between_saves: float = EVERY_EPOCH) -> str:
        """Train in this process for the epochs of params.yaml; return what was printed."""
        with redirect_stdout(io.StringIO()) as printed:
            self.stage("train", *self.arguments(variant, costs_between_saves))
        return printed.getvalue()

    def arguments(self, variant: str, costs_between_saves: float) -> list[str]:
        """Return the arguments of a training, as dvc.yaml has them."""
        weights = f"models/{variant}/0.safetensors"
        tables = [f"metrics/{kind}/{variant}/0.csv" for kind in ("history", "timing")]
        option = ["--costs-between-saves", str(costs_between_saves)]
        return [*option, variant, "0", "data/subset", weights, *tables]

    def train_command(
        self, variant: str, costs_between_saves: float = EVERY_EPOCH, code: Path = CHECKOUT
    ) -> list[str]:
        """Return a training as the command of a process of its own."""
        stage = ["python", "-m", "stages", "train", *self.arguments(variant, costs_between_saves)]
        return ["env", f"PYTHONPATH={code}", *stage]

    def set_epochs(self, epochs: int) -> None:
        """Write the number of epochs into params.yaml."""
        with self.params() as params:
            params["train"]["epochs"] = epochs

    def checkpoint(self, variant: str) -> Path:
        """Return the path of the variant's checkpoint."""
        return self.folder / checkpoint_path(variant, 0)

    def take(self, source: "Place", variant: str, name: str | None = None) -> Path:
        """Copy the variant's checkpoint, as one of the variant `name`; return its path."""
        path = self.checkpoint(name or variant)
        path.parent.mkdir(parents=True)
        shutil.copyfile(source.checkpoint(variant), path)
        return path

    def timings(self, variant: str) -> list[dict[str, str]]:
        """Return the rows of the variant's timing file."""
        with (self.folder / f"metrics/timing/{variant}/0.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))


NewPlace = Callable[[int], Place]
Scratch = Callable[[str, int], Place]


@pytest.fixture(scope="module")
def new_place(tmp_path_factory: pytest.TempPathFactory) -> NewPlace:
    """Return a maker of places with six images a split, for trainings of so many epochs."""
    chance = np.random.default_rng(0)
    labels = np.repeat(np.array([3, 5, 8], np.uint8), 2)

    def make(epochs: int) -> Place:
        place = Place(tmp_path_factory.mktemp("place"))
        params = plain_params(CHECKOUT)
        params["data"] |= {"per_class": 2, "classes": [3, 5, 8], "pad": 2, "scale": "none"}
        params["network"] = TINY
        params["train"] = {"epochs": epochs, "batch_size": 4, "device": "cpu", "precision": "fp32"}
        network = {"activation": "relu", "dropout": 0.5}
        params["variants"] = {
            "adam": {**network, "optimizer": "adam", "lr": 0.001},
            "sgd": {**network, "optimizer": "sgd", "lr": RATE, "momentum": 0.9},
            "plain": {**network, "optimizer": "sgd", "lr": RATE, "momentum": 0},
        }
        params["variant"], params["seeds"] = "plain", [0]
        params["datasets"] = {name: {"sources": ["data"]} for name in ("mnist", "kmnist")}
        params["dataset"] = "mnist"
        write_params(place.folder, params)
        shutil.copytree(subset, place.folder / "data/subset")
        return place

    subset = tmp_path_factory.mktemp("source") / "subset"
    for name in SPLITS:
        images = chance.integers(0, 256, (len(labels), 28, 28), np.uint8)
        save_split(subset / f"{name}.safetensors", choose(name, images, labels, [3, 5, 8], 2, 2))
    return make


@pytest.fixture(scope="module")
def scratch(new_place: NewPlace) -> Scratch:
    """Return where a variant was trained for so many epochs in one go; do not change it."""
    trained: dict[tuple[str, int], Place] = {}

    def get(variant: str, epochs: int) -> Place:
        if (variant, epochs) not in trained:
            place = trained[variant, epochs] = new_place(epochs)
            assert ANEW in place.train(variant)
        return trained[variant, epochs]

    return get


def leave_half_a_checkpoint(path: Path) -> None:
    """Leave what a kill in the midst of saving does."""
    folder = path.with_name(path.name + ".tmp")
    folder.mkdir(exist_ok=True)  # a real kill may have left one
    (folder / ".tmp0").write_bytes(b"what a saving had written when it was killed")


# Going on.


@pytest.mark.parametrize(("variant", "epochs"), [("adam", 2), ("sgd", 2), ("plain", 3)])
def test_more_epochs_go_on_to_the_bytes_of_one_go(
    variant: str, epochs: int, new_place: NewPlace, scratch: Scratch
) -> None:
    place = new_place(epochs)
    place.take(scratch(variant, 1), variant)
    output = place.train(variant)
    assert f"{place.checkpoint(variant).relative_to(place.folder)}: goes on after epoch 1" in output
    new = [str(epoch) for epoch in range(2, epochs + 1)]
    assert re.findall(r"Epoch \[(.+)/.*, saved", output) == new
    assert place.digests() == scratch(variant, epochs).digests()
    first, *others = place.timings(variant)
    assert [first] == scratch(variant, 1).timings(variant)
    assert [row["epoch"] for row in others] == new


def test_a_finished_checkpoint_trains_nothing_and_writes_the_same(
    new_place: NewPlace, scratch: Scratch
) -> None:
    place = new_place(3)
    path = place.take(scratch("plain", 3), "plain")
    written = path.stat().st_mtime_ns
    leave_half_a_checkpoint(path)
    output = place.train("plain")
    assert "goes on after epoch 3" in output and "Epoch [" not in output
    assert place.digests() == scratch("plain", 3).digests()
    assert place.timings("plain") == scratch("plain", 3).timings("plain")
    assert path.stat().st_mtime_ns == written
    assert [*path.parent.iterdir()] == [path]


def test_fewer_epochs_start_anew_and_then_have_their_checkpoint(
    new_place: NewPlace, scratch: Scratch
) -> None:
    place = new_place(1)
    path = place.take(scratch("plain", 3), "plain")
    output = place.train("plain")
    assert "0.safetensors has 3 epochs, more than the 1 wanted\n" + ANEW in output
    assert place.digests() == scratch("plain", 1).digests()
    assert [row["epoch"] for row in read_tensors(path)[1]["rows"]] == [1]


def test_a_copy_within_dvc_uses_the_checkouts_checkpoint_and_leaves_it(
    new_place: NewPlace, scratch: Scratch
) -> None:
    above = new_place(3)
    path = above.take(scratch("plain", 1), "plain")
    inner = Place(above.folder / ".dvc/tmp/exps/tmp1")
    shutil.copytree(above.folder / "data", inner.folder / "data")
    shutil.copy(above.folder / "params.yaml", inner.folder)
    before = path.stat().st_mtime_ns
    assert f"{path}: goes on after epoch 1\n" in inner.train("plain")
    assert inner.digests() == scratch("plain", 3).digests()
    assert len(read_tensors(inner.checkpoint("plain"))[1]["rows"]) == 3
    assert path.stat().st_mtime_ns == before
    assert list(path.parent.iterdir()) == [path]


# What does not fit starts anew.

Refuse = Callable[..., str]


@pytest.fixture
def refuse(
    scratch: Scratch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refuse:
    """Return what must refuse the checkpoint of `plain`, and returns why, without the path."""
    fitting = read_tensors(scratch("plain", 1).checkpoint("plain"))[1]["fingerprint"]
    network = untrained(fitting)
    optimizer = torch.optim.Adam(network.parameters())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    ran_on = machine.describe(torch.device("cpu"))

    def look(place: Place, seed: int = 0, device: str = "cpu") -> str:
        monkeypatch.chdir(place.folder)
        params = load_params()
        precision = choose_precision(params.train.precision, torch.device("cpu"))
        now = train.fingerprint(params, "plain", seed, device, precision, Path("data/subset"))
        path = checkpoint_path("plain", 0)
        capsys.readouterr()
        progress = checkpoints.resume(path, now, ran_on, params.train.epochs, network, optimizer)
        assert progress == Progress()
        state = network.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
        assert not optimizer.state
        reason, anew, *others = capsys.readouterr().out.splitlines(keepends=True)
        assert reason.startswith(str(path)) and (anew, others) == (ANEW, [])
        return reason.removeprefix(str(path)).strip()

    return look


@pytest.mark.parametrize(
    ("key", "new", "change"),
    [
        ("variants.plain.lr", 0.02, "lr was 0.01, is 0.02"),
        ("variants.plain.dropout", 0.25, "dropout was 0.5, is 0.25"),
        ("variants.plain.momentum", 0.9, "momentum was 0.0, is 0.9"),
        ("variants.plain.activation", "sigmoid", "activation was relu, is sigmoid"),
        ("train.batch_size", 5, "batch_size was 4, is 5"),
        ("train.precision", "bf16", "precision was fp32, is bf16"),
        ("data.scale", "unit", "scale was none, is unit"),
        ("data.classes", [5, 3, 8], "classes was [3, 5, 8], is [5, 3, 8]"),
        ("dataset", "kmnist", "dataset was mnist, is kmnist"),
        ("network.hidden", [16], "hidden was [16, 16], is [16]"),
        ("network.batch_norm_momentum", 0.2, "batch_norm_momentum was 0.1, is 0.2"),
        ("network.widths", [8, "M"], f"widths was {TINY['widths']}, is [8, 'M']"),
    ],
)
def test_a_changed_parameter_is_named_and_starts_anew(
    key: str, new: object, change: str, new_place: NewPlace, scratch: Scratch, refuse: Refuse
) -> None:
    place = new_place(1)
    place.take(scratch("plain", 1), "plain")
    set_parameter(place, key, new)
    assert refuse(place) == f"is of another training: {change}"


def set_parameter(place: Place, key: str, value: object) -> None:
    """Write a value into params.yaml."""
    *sections, last = key.split(".")
    with place.params() as params:
        for section in sections:
            params = params[section]
        params[last] = value


def test_another_seeds_devices_or_subsets_checkpoint_starts_anew(
    new_place: NewPlace, scratch: Scratch, refuse: Refuse
) -> None:
    place = new_place(1)
    place.take(scratch("plain", 1), "plain")
    assert refuse(place, seed=1) == "is of another training: seed was 0, is 1"
    assert refuse(place, device="cuda") == "is of another training: device type was cpu, is cuda"
    for name in SPLITS:
        split = load_split(place.folder / "data/subset", name)
        split.images[0, 0, 16, 16] ^= 1
        save_split(place.folder / f"data/subset/{name}.safetensors", split)
        reason = f"is of another training: .*{name} images was [0-9a-f]{{16}}, is [0-9a-f]{{16}}"
        assert re.fullmatch(reason, refuse(place))


def test_another_variants_checkpoint_changes_nothing(new_place: NewPlace, scratch: Scratch) -> None:
    place = new_place(1)
    place.take(scratch("adam", 1), "adam", name="plain")
    output = place.train("plain")
    assert "is of another training: variant was adam, is plain, optimizer was adam" in output
    assert ANEW in output
    assert place.digests() == scratch("plain", 1).digests()


@pytest.mark.parametrize("key", ["torch", "stages/train.py", "stages/learning/kernels.py"])
def test_another_versions_checkpoint_starts_anew(
    key: str, new_place: NewPlace, scratch: Scratch, refuse: Refuse
) -> None:
    place = new_place(1)
    path = place.take(scratch("plain", 1), "plain")
    tensors, description = read_tensors(path)
    now, description["fingerprint"][key] = description["fingerprint"][key], "another"
    write_tensors(path, tensors, description)
    assert refuse(place) == f"is of another training: {key} was another, is {now}"
    assert key != "torch" or now == version("torch")


def test_other_code_of_learning_starts_anew(new_place: NewPlace, scratch: Scratch) -> None:
    place = new_place(1)
    place.take(scratch("plain", 1), "plain")
    for name in ("stages", "pyproject.toml"):
        subprocess.run(["cp", "-r", CHECKOUT / name, place.folder], check=True)
    with (place.folder / "stages/learning/split.py").open("a", encoding="utf-8") as file:
        file.write("# a change\n")
    output = place.run(*place.train_command("plain", code=place.folder))
    change = "stages/learning/split.py was [0-9a-f]{16}, is [0-9a-f]{16}"
    assert re.search(f"is of another training: {change}\n{ANEW}", output)
    assert place.digests() == scratch("plain", 1).digests()


def test_a_checkpoint_depends_on_the_code_that_dvc_yaml_names(scratch: Scratch) -> None:
    fingerprint = read_tensors(scratch("plain", 1).checkpoint("plain"))[1]["fingerprint"]
    learning = (CHECKOUT / "stages/learning").glob("*.py")
    expected = {"stages/train.py", *(f"stages/learning/{module.name}" for module in learning)}
    assert {name for name in fingerprint if name.startswith("stages/")} == expected


def test_other_threads_go_on_and_it_is_said(new_place: NewPlace, scratch: Scratch) -> None:
    place = new_place(2)
    place.take(scratch("plain", 1), "plain")
    torch.set_num_threads(2)
    try:
        output = place.train("plain")
    finally:
        torch.set_num_threads(1)
    assert "goes on after epoch 1\nthreads was 1, is 2: bits may differ" in output
    assert [row["threads"] for row in place.timings("plain")] == ["1", "2"]


@pytest.mark.parametrize(
    ("key", "values", "epochs", "said"),
    [
        ("threads", [2], 2, "threads was 2, is 1: bits may differ"),
        ("threads", [2, 1], 3, "threads was 2, is 1: bits may differ"),
        ("threads", [2, 1], 2, ""),
        ("threads", [1, 1], 3, ""),
        ("instructions", ["AVX512", 1], 3, "instructions was AVX512, is 1: bits may differ"),
        ("cores", [2, 1], 3, ""),
    ],
)
def test_bits_may_differ_if_any_epoch_had_other_threads_and_there_are_more_to_come(
    key: str,
    values: list[int],
    epochs: int,
    said: str,
    new_place: NewPlace,
    scratch: Scratch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = new_place(1).take(scratch("plain", 1), "plain")
    tensors, description = read_tensors(path)
    (row,), (timing,) = description["rows"], description["timings"]
    description["rows"] = [row] * len(values)
    description["timings"] = [timing | {key: value} for value in values]
    write_tensors(path, tensors, description)
    network = untrained(description["fingerprint"])
    optimizer = torch.optim.SGD(network.parameters())
    ran_on = timing | {key: 1}
    checkpoints.resume(path, description["fingerprint"], ran_on, epochs, network, optimizer)
    goes_on = f"{path}: goes on after epoch {len(values)}\n"
    said += " from those of a run in one go\n" if said else ""
    assert capsys.readouterr().out == goes_on + said


# Damage.


@contextmanager
def flipped(path: Path, offset: int, bit: int) -> Iterator[None]:
    """Flip a bit of the file, and flip it back at the end."""
    with path.open("r+b") as file:
        for end in (False, True):
            file.seek(offset)
            (byte,) = file.read(1)
            file.seek(offset)
            file.write(bytes([byte ^ 1 << bit]))
            file.flush()
            if not end:
                yield


def test_a_flipped_bit_anywhere_starts_anew(
    new_place: NewPlace, scratch: Scratch, refuse: Refuse
) -> None:
    place = new_place(1)
    path = place.take(scratch("sgd", 1), "sgd", name="plain")
    size = path.stat().st_size
    with path.open("rb") as file:
        tensors = 8 + int.from_bytes(file.read(8), "little")
        header = file.read(tensors - 8)
    # Not in the rows: a last digit of theirs may be another and mean the same number.
    fingerprint = 8 + header.index(b"fingerprint")
    end_of_fingerprint = 8 + header.index(b'"}', fingerprint)
    entries = 8 + header.index(b'"network.')
    chance = random.Random(0)
    spans = [(0, 8), (fingerprint, end_of_fingerprint), (entries, tensors), (tensors, size)]
    for start, end in spans:
        for _ in range(10):
            offset, bit = chance.randrange(start, end), chance.randrange(8)
            with flipped(path, offset, bit):
                assert re.match(": (not readable as a file of ours|damaged)", refuse(place)), offset
    assert "is of another training" in refuse(place)  # all bits are back


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        """Say how to make it again."""
        return open, (str(self.marker), "w")


def write_trap(path: Path, marker: Path) -> None:
    """Write a PyTorch file that makes the marker when it is loaded, as is shown once."""
    named_otherwise = path.with_suffix(".pt")  # torch.load goes by the suffix
    torch.save(Trap(marker), named_otherwise)
    torch.load(named_otherwise, weights_only=False).close()
    marker.unlink()
    named_otherwise.replace(path)


def test_what_is_no_checkpoint_starts_anew_and_is_not_executed(
    new_place: NewPlace, scratch: Scratch, refuse: Refuse
) -> None:
    place, trained = new_place(1), scratch("plain", 1)
    path = place.take(trained, "plain")
    content = path.read_bytes()
    chance, marker = random.Random(0), place.folder / "executed"
    for length in (0, 1, 8, chance.randrange(10_000), chance.randrange(len(content)), -1):
        path.write_bytes(content[:length])
        assert refuse(place).startswith(": not readable as a file of ours"), length
    path.write_bytes(content + b"\0")
    assert refuse(place).startswith(": not readable as a file of ours")
    path.write_text("a text, and not a short one: longer than the eight bytes of a length\n")
    assert refuse(place).startswith(": not readable as a file of ours")
    write_trap(path, marker)
    assert refuse(place).startswith(": not readable as a file of ours")
    assert not marker.exists()
    path.unlink()
    path.mkdir()
    assert refuse(place).startswith(": not readable as a file of ours")
    path.rmdir()
    shutil.copyfile(trained.folder / "models/plain/0.safetensors", path)
    assert refuse(place) == "is not a checkpoint"


def test_a_training_makes_a_damaged_checkpoint_anew(new_place: NewPlace, scratch: Scratch) -> None:
    place = new_place(1)
    path, marker = place.take(scratch("plain", 1), "plain"), place.folder / "executed"
    write_trap(path, marker)
    output = place.train("plain")
    assert re.search(r"plain/0\.safetensors: not readable as a file of ours.*\n" + ANEW, output)
    assert place.digests() == scratch("plain", 1).digests()
    assert not marker.exists()
    assert len(read_tensors(path)[1]["rows"]) == 1


def test_a_checkpoint_that_may_not_be_read_is_named_and_left(
    new_place: NewPlace, scratch: Scratch
) -> None:
    place = new_place(1)
    path = place.take(scratch("plain", 1), "plain")
    kept = path.read_bytes()
    path.chmod(0)
    command = place.train_command("plain")
    if os.geteuid() == 0:
        reading = "-dac_override,-dac_read_search"
        humbly = ["setpriv", "--inh-caps", reading, "--bounding-set", reading]
        if not shutil.which("setpriv") or subprocess.run([*humbly, "true"], check=False).returncode:
            pytest.skip("root may read everything, and nothing here takes that from it")
        command = [*humbly, *command]
    output = place.run(*command, fails=True)
    assert output.endswith(
        "\nerror: [Errno 13] Permission denied: '.checkpoints/plain/0.safetensors'\n"
    )
    path.chmod(0o600)
    assert path.read_bytes() == kept


@contextmanager
def truncated(path: Path) -> Iterator[None]:
    """Take a file's last byte away, and put it back at the end."""
    content = path.read_bytes()
    os.truncate(path, len(content) - 1)
    yield
    path.write_bytes(content)


def damages(path: Path) -> list[AbstractContextManager[None]]:
    """Return what damages the file, and mends it at the end."""
    return [truncated(path), flipped(path, path.stat().st_size // 2, 3)]


def test_a_damaged_subset_stops_the_training(new_place: NewPlace) -> None:
    place = new_place(1)
    for damage in damages(place.folder / "data/subset/test.safetensors"):
        with damage, pytest.raises(InputError) as stop:
            place.train("plain")
        assert re.fullmatch(
            r"data/subset/test\.safetensors: .*`dvc repro` makes it anew", str(stop.value)
        )
    assert not (place.folder / "models").exists()


def test_a_damaged_model_stops_its_evaluation(new_place: NewPlace, scratch: Scratch) -> None:
    place = new_place(1)
    for folder in ("models", "metrics"):
        shutil.copytree(scratch("plain", 1).folder / folder, place.folder / folder)
    inputs = ["models/plain", "metrics/history/plain", "data/subset"]
    outputs = ["summary.json", "uncertainty.json", "curves.csv", "confusion.csv"]
    for damage in damages(place.folder / "models/plain/0.safetensors"):
        with damage, pytest.raises(InputError) as stop:
            place.stage("evaluate", "plain", *inputs, *outputs)
        assert re.fullmatch(
            r"models/plain/0\.safetensors: .*`dvc repro` makes it anew", str(stop.value)
        )
    assert not any((place.folder / name).exists() for name in outputs)


# Parameters that change meanwhile.


def change_after_the_first_epoch(
    place: Place, key: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the next training of this process find another params.yaml after its first epoch."""

    def and_change(*arguments: Any) -> Iterator[EpochRow]:
        for row in loop.train(*arguments):
            yield row
            if row.epoch == 1:
                set_parameter(place, key, value)

    monkeypatch.setattr("stages.train.train", and_change)


@pytest.mark.parametrize(
    ("key", "new", "change"),
    [
        ("variants.plain.lr", 0.5, f"lr was {RATE}, is 0.5"),
        ("train.epochs", 2, "epochs was 3, is 2"),
        ("train.device", "mps", "device was cpu, is mps"),
        ("train.precision", "auto", "precision was fp32, is auto"),
    ],
)
def test_parameters_changed_while_it_trains_leave_a_checkpoint_and_no_outputs(
    key: str,
    new: object,
    change: str,
    new_place: NewPlace,
    scratch: Scratch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = new_place(3)
    as_it_was = (place.folder / "params.yaml").read_bytes()
    change_after_the_first_epoch(place, key, new, monkeypatch)
    with pytest.raises(InputError, match=rf"while this trained, {change}; no outputs written"):
        place.train("plain")
    assert not [*place.folder.glob("m*s/**/*.*")]  # in models and metrics
    (place.folder / "params.yaml").write_bytes(as_it_was)
    assert "goes on after epoch 3" in place.train("plain")
    assert place.digests() == scratch("plain", 3).digests()


def test_parameters_of_others_may_change_while_it_trains(
    new_place: NewPlace, scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = new_place(3)
    change_after_the_first_epoch(place, "variants.adam.lr", 0.5, monkeypatch)
    place.train("plain")
    assert place.digests() == scratch("plain", 3).digests()


# When an epoch is saved.


@dataclass
class Simulation:
    """A training on a clock of its own, on which copies, writes and epochs take set seconds.

    The simulation stands for the thread that writes and for the result of a write.
    """

    copying: float = 0.0  # seconds, of the next save
    writing: float = 0.0
    now: float = 0.0
    written_at: float = 0.0  # when the disk has what it was given
    held_up: float = 0.0  # for how long saving held the training up

    def __enter__(self) -> "Simulation":
        """Begin as a thread."""
        return self

    def __exit__(self, *_: object) -> None:
        """End as a thread."""

    def submit(self, work: Callable[..., None], *arguments: object) -> "Simulation":
        """Do the work: a write adds to `written_at`."""
        self.written_at = max(self.written_at, self.now)
        work(*arguments)
        return self

    def result(self) -> None:
        """Wait for the last write."""
        self.now = max(self.now, self.written_at)

    def write(self, *_: object) -> None:
        """Stand for `write_tensors`."""
        self.written_at += self.writing

    def copied(self) -> dict[str, torch.Tensor]:
        """Stand for the state of a network, which takes time to copy."""
        self.now += self.copying
        return {}


Simulate = Callable[..., list[int]]


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> Simulation:
    """Return a simulation that `checkpoints.saving` works on."""
    simulation = Simulation()
    monkeypatch.setattr(checkpoints, "ThreadPoolExecutor", lambda max_workers: simulation)
    monkeypatch.setattr(checkpoints, "write_tensors", simulation.write)
    return simulation


@pytest.fixture
def simulate(
    simulation: Simulation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Simulate:
    """Return what trains with epochs of those seconds, and returns which epochs are saved."""
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters())
    network.state_dict = simulation.copied  # type: ignore[method-assign,assignment]

    def run(
        epochs: list[float], ratio: float = 20, begin: Callable[[], None] = lambda: None
    ) -> list[int]:
        progress = Progress()
        with checkpoints.saving(
            tmp_path / "0", {}, len(epochs), network, optimizer, ratio, lambda: simulation.now
        ) as after_epoch:
            for number, seconds in enumerate(epochs, start=1):
                begin()
                simulation.now += seconds
                progress.rows.append({})
                started = simulation.now
                after_epoch(progress, f"epoch {number}")
                simulation.held_up += simulation.now - started
            ended = simulation.now
        simulation.held_up += simulation.now - ended
        lines = [line.split(", ") for line in capsys.readouterr().out.splitlines()]
        assert [name for name, _ in lines] == [f"epoch {i + 1}" for i in range(len(epochs))]
        assert {said for _, said in lines} <= {"saved", "not saved"}
        return [number for number, (_, said) in enumerate(lines, start=1) if said == "saved"]

    return run


def test_after_the_first_epoch_one_is_saved_every_20_costs_and_the_last_one(
    simulation: Simulation, simulate: Simulate
) -> None:
    simulation.copying = 1
    assert simulate([3.0] * 25) == [1, 8, 15, 22, 25]  # 7 epochs take 21 seconds


@pytest.mark.parametrize(("seconds", "ratio"), [(20.0, 20), (0.001, 0), (5.0, 5)])
def test_every_epoch_is_saved_where_it_takes_as_long_as_the_wanted_costs(
    seconds: float, ratio: float, simulation: Simulation, simulate: Simulate
) -> None:
    simulation.copying = 1
    assert simulate([seconds] * 9, ratio) == [*range(1, 10)]
    assert ratio == 0 or len(simulate([seconds * 0.99] * 9, ratio)) == 5


def test_waiting_for_the_write_before_is_a_cost(simulation: Simulation, simulate: Simulate) -> None:
    simulation.writing = 10
    # The first save costs nothing yet. The second waits 9 seconds, so the third comes 180 later.
    assert simulate([1.0] * 200) == [1, 2, 182, 183, 200]


def test_saving_is_dear_once_and_cheap_again(simulation: Simulation, simulate: Simulate) -> None:
    costs = chain([1], repeat(0.1))
    saved = simulate([10.0] * 9, begin=lambda: setattr(simulation, "copying", next(costs)))
    assert saved == [1, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("seed", range(5))
def test_saving_holds_a_long_training_up_for_less_than_a_twentieth(
    seed: int, simulation: Simulation, simulate: Simulate
) -> None:
    chance = random.Random(seed)

    def vary() -> None:
        simulation.copying = chance.expovariate(1 / 0.2)
        simulation.writing = chance.expovariate(1 / 3)

    epochs = [chance.expovariate(1 / chance.choice((0.1, 1, 10))) for _ in range(5_000)]
    saved = simulate(epochs, begin=vary)
    assert 50 < len(saved) < 4_000
    assert simulation.held_up < 0.05 * simulation.now
    assert simulation.now == pytest.approx(sum(epochs) + simulation.held_up)


def test_by_default_a_training_saves_every_20_costs() -> None:
    assert inspect.signature(train.main).parameters["costs_between_saves"].default == 20


def test_the_line_of_an_unsaved_epoch_waits_for_that_of_a_saved_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    may_write = Event()
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters())

    def write(*arguments: Any) -> None:
        may_write.wait()
        write_tensors(*arguments)

    monkeypatch.setattr(checkpoints, "write_tensors", write)
    progress = Progress()
    with checkpoints.saving(
        tmp_path / "0.safetensors", {}, 4, network, optimizer, HARDLY_EVER
    ) as after_epoch:
        for number in range(1, 4):
            progress.rows.append({})
            after_epoch(progress, f"epoch {number}")
        early = capsys.readouterr().out
        may_write.set()
    assert early == ""  # the first one was not on the disk yet
    told = "epoch 1, saved\nepoch 2, not saved\nepoch 3, not saved\n"
    assert capsys.readouterr().out == told


# Signals and kills.


@contextmanager
def training(
    place: Place, costs_between_saves: float, until: str
) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Yield an endless training of `plain` and its lines, once the last of them has the text."""
    place.set_epochs(ENDLESS)
    with subprocess.Popen(
        place.train_command("plain", costs_between_saves),
        cwd=place.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines: list[str] = []
            for line in process.stdout:
                lines.append(line)
                if until in line:
                    break
            yield process, lines
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "costs_between_saves", "until"),
    [
        (signal.SIGINT, HARDLY_EVER, ", not saved"),
        (signal.SIGTERM, HARDLY_EVER, ", not saved"),
        (signal.SIGTERM, EVERY_EPOCH, "Epoch [3/"),
        (signal.SIGKILL, HARDLY_EVER, ", not saved"),
        (signal.SIGKILL, EVERY_EPOCH, "Epoch [3/"),
    ],
)
def test_a_stopped_training_goes_on_after_the_last_epoch_that_is_told_as_saved(
    number: signal.Signals,
    costs_between_saves: float,
    until: str,
    new_place: NewPlace,
    scratch: Scratch,
) -> None:
    place = new_place(ENDLESS)
    with training(place, costs_between_saves, until) as (process, lines):
        process.send_signal(number)
        assert process.stdout is not None
        lines += process.stdout
    saved = [int(epoch) for epoch in re.findall(r"Epoch \[(\d+)/.*, saved\n", "".join(lines))]
    epochs = len(read_tensors(place.checkpoint("plain"))[1]["rows"])
    if number == signal.SIGKILL:
        assert process.returncode == -number
        assert epochs - saved[-1] in (0, 1)  # one may be written, but not told
        assert costs_between_saves == EVERY_EPOCH or saved == [1]
        leave_half_a_checkpoint(place.checkpoint("plain"))
    else:
        assert process.returncode == 128 + number
        assert re.search(rf"\nstopped by {number.name}; .*{GOES_ON}\n", "".join(lines))
        assert "Traceback" not in "".join(lines)
        told = re.findall(r"Epoch \[(\d+)/", "".join(lines))
        assert epochs == saved[-1] == int(told[-1])
    place.set_epochs(epochs + 2)
    assert f"goes on after epoch {epochs}\n" in place.train("plain")
    assert place.digests() == scratch("plain", epochs + 2).digests()
    assert not [*place.folder.rglob("*.tmp")]


# Files appear whole.


@pytest.mark.parametrize("kind", ["file", "link to a folder", "dangling link", "folder"])
def test_whatever_bears_the_temporary_name_is_not_in_the_way(tmp_path: Path, kind: str) -> None:
    target, elsewhere = tmp_path / "table.csv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    in_the_way = tmp_path / "table.csv.tmp"
    if kind == "file":
        in_the_way.touch()
    elif kind == "folder":
        shutil.copytree(elsewhere, in_the_way)
    else:
        in_the_way.symlink_to(elsewhere if kind == "link to a folder" else tmp_path / "nowhere")
    write_table(target, [{"epoch": 1}])
    assert target.read_text(encoding="utf-8") == "epoch\n1\n"
    assert sorted(tmp_path.iterdir()) == [elsewhere, target]
    assert [*elsewhere.iterdir()] == [elsewhere / "kept"]


def test_a_file_is_on_disk_before_it_is_renamed_and_then_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, int, int]] = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        events.append(("fsync", status.st_ino, status.st_size))
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> Path:
        events.append(("replace", source.stat().st_ino, source.stat().st_size))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    table, tensors = tmp_path / "new/table.csv", tmp_path / "new/tensors.safetensors"
    write_table(table, [{"epoch": epoch} for epoch in range(100)])
    write_tensors(tensors, {"zeros": np.zeros(1000)}, {})
    folder = ("fsync", table.parent.stat().st_ino, table.parent.stat().st_size)
    expected = []
    for path in (table, tensors):
        whole = (path.stat().st_ino, path.stat().st_size)
        expected += [("fsync", *whole), ("replace", *whole), folder]
    assert events == expected
