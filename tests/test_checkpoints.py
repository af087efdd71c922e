"""A training goes on from its checkpoint, to the bit; from any other state it starts anew."""

import csv
import inspect
import io
import os
import pickle
import random
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from stages import train
from stages.learning import loop
from stages.learning.history import EpochRow
from stages.learning.split import SPLITS
from stages.support import checkpoints
from stages.support.checkpoints import Progress, checkpoint_path
from stages.support.digests import short_sha256
from stages.support.errors import GOES_ON, InputError
from stages.support.params import load_params
from stages.support.tables import write_table
from stages.support.tensors import read_tensors, write_tensors
from tests.commands import started
from tests.conftest import CHECKOUT, Project
from tools.copies import plain_params, write_params

ANEW = "starts with epoch 1\n"
EVERY_EPOCH, HARDLY_EVER = 0.0, 1e9  # costs between saves
ENDLESS = 1_000_000  # epochs


@dataclass(frozen=True)
class Place(Project):
    """A folder that a training works in; the code is the checkout's."""

    def train(self, variant: str) -> str:
        """Train in this process for the epochs of params.yaml; return what was printed."""
        with redirect_stdout(io.StringIO()) as printed:
            self.stage("train", *self.arguments(variant))
        return printed.getvalue()

    def arguments(self, variant: str, costs_between_saves: float = EVERY_EPOCH) -> list[str]:
        """Return the arguments of a training, as dvc.yaml has them."""
        option = ["--costs-between-saves", str(costs_between_saves)]
        weights = f"models/{variant}/0.safetensors"
        tables = [f"metrics/{kind}/{variant}/0.csv" for kind in ("history", "timing")]
        return [*option, variant, "0", "data/subset", weights, *tables]

    def set(self, key: str, value: object) -> None:
        """Write a value into params.yaml; the key names its sections too, with dots between."""
        *sections, last = key.split(".")
        with self.params() as params:
            for section in sections:
                params = params[section]
            params[last] = value

    def checkpoint(self, variant: str) -> Path:
        """Return the path of the variant's checkpoint."""
        return self.folder / checkpoint_path(variant, 0)

    def take(self, source: "Place", variant: str) -> Path:
        """Copy the variant's checkpoint from another place, and return its path here."""
        path = self.checkpoint(variant)
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
def new_place(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> NewPlace:
    """Return a maker of places with twelve images a split, for trainings of so many epochs."""

    def make(epochs: int) -> Place:
        place = Place(tmp_path_factory.mktemp("place"))
        shutil.copytree(finished.folder / "data/subset", place.folder / "data/subset")
        params = plain_params(finished.folder)
        params["train"] = {"epochs": epochs, "batch_size": 4, "device": "cpu", "precision": "fp32"}
        params["variants"]["plain"] = params["variants"]["sgd"] | {"momentum": 0}
        write_params(place.folder, params)
        return place

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


# Going on.


@pytest.mark.parametrize(("variant", "epochs"), [("adam", 2), ("sgd", 2), ("plain", 3)])
def test_more_epochs_go_on_to_the_bytes_of_one_go(
    variant: str, epochs: int, new_place: NewPlace, scratch: Scratch
) -> None:
    place = new_place(epochs)
    place.take(scratch(variant, 1), variant)
    output = place.train(variant)
    assert f"\n.checkpoints/{variant}/0.safetensors: goes on after epoch 1\n" in output
    new = [str(epoch) for epoch in range(2, epochs + 1)]
    assert re.findall(r"Epoch \[(.+)/.*, saved", output) == new
    assert "bits may differ" not in output
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
    half = path.with_name(path.name + ".tmp")  # of a save that was killed
    half.mkdir()
    (half / ".tmp0").touch()
    output = place.train("plain")
    assert "goes on after epoch 3" in output and "Epoch [" not in output
    assert place.digests() == scratch("plain", 3).digests()
    assert place.timings("plain") == scratch("plain", 3).timings("plain")
    assert path.stat().st_mtime_ns == written
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize(
    ("key", "values", "epochs", "told"),
    [
        ("threads", [2], 2, True),
        ("threads", [2, 1], 3, True),
        ("threads", [2, 1], 2, False),  # no epoch is left to train
        ("instructions", ["AVX0"], 2, True),
        ("cores", [0], 2, False),  # which decide no bits
    ],
)
def test_bits_may_differ_if_any_epoch_ran_on_another_machine_and_more_are_to_come(
    key: str, values: list[object], epochs: int, told: bool, new_place: NewPlace, scratch: Scratch
) -> None:
    place = new_place(epochs)
    path = place.take(scratch("plain", 1), "plain")
    tensors, description = read_tensors(path)
    (row,), (timing,) = description["rows"], description["timings"]
    description["rows"] = [row] * len(values)
    description["timings"] = [timing | {key: value} for value in values]
    write_tensors(path, tensors, description)
    output = place.train("plain")
    assert f"goes on after epoch {len(values)}\n" in output
    warning = f"{key} was {values[0]}, is {timing[key]}: bits may differ from those of a run in one"
    assert (warning in output) == ("bits may differ" in output) == told


# What does not fit starts anew.


def test_a_checkpoint_knows_all_that_decides_its_training(
    scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(scratch("plain", 1).folder)
    _, description = read_tensors(checkpoint_path("plain", 0))
    learning = (CHECKOUT / "stages/learning").glob("*.py")
    code = ["stages/train.py", *(f"stages/learning/{module.name}" for module in learning)]
    # tests/test_formats.py has the parameters that `training` returns.
    assert description["fingerprint"] == load_params().training("plain", 0) | {
        "device type": "cpu",
        "precision": "fp32",
        "torch": version("torch"),
        **{
            f"{name} images": short_sha256(Path(f"data/subset/{name}.safetensors"))
            for name in SPLITS
        },
        **{name: short_sha256(CHECKOUT / name) for name in code},
    }


def flip(content: bytes, offset: int, bit: int) -> bytes:
    """Return the bytes with a bit of one of them flipped."""
    return content[:offset] + bytes([content[offset] ^ 1 << bit]) + content[offset + 1 :]


@pytest.mark.parametrize(
    ("left", "reason"),
    [
        ("a longer training's", " has 3 epochs, more than the 1 wanted"),
        ("another variant's", " is of another training: variant was adam, is plain, .*"),
        ("a flipped bit", ": damaged, its digest is another"),
        ("a text", ": is not one of this pipeline's tensor files .*"),
        ("weights", " is of another training: variant was None, is plain, .*"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_no_bit_and_is_replaced(
    left: str, reason: str, new_place: NewPlace, scratch: Scratch
) -> None:
    place, trained = new_place(1), scratch("plain", 1)
    path = place.take(trained, "plain")
    contents = {
        "a longer training's": scratch("plain", 3).checkpoint("plain").read_bytes(),
        "another variant's": scratch("adam", 1).checkpoint("adam").read_bytes(),
        "a flipped bit": flip(path.read_bytes(), path.stat().st_size - 1, 0),
        "a text": b"longer than the eight bytes of a length",
        "weights": (trained.folder / "models/plain/0.safetensors").read_bytes(),
    }
    path.write_bytes(contents[left])
    assert re.search(rf"plain/0\.safetensors{reason}\n{ANEW}", place.train("plain"))
    assert place.digests() == trained.digests()
    assert [row["epoch"] for row in read_tensors(path)[1]["rows"]] == [1]


# Damage.


def require_refusal(path: Path, content: bytes, reason: str) -> None:
    """Check that a file of this content is refused, with its name and the reason."""
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"{path}: ({reason})"):
        read_tensors(path)


def test_a_flipped_bit_anywhere_is_refused(scratch: Scratch, tmp_path: Path) -> None:
    content = scratch("sgd", 1).checkpoint("sgd").read_bytes()
    tensors = 8 + int.from_bytes(content[:8], "little")
    # Not in the rows: a last digit of theirs may be another and mean the same number.
    fingerprint = content.index(b"fingerprint")
    end_of_fingerprint = content.index(b'"}', fingerprint)
    entries = content.index(b'"network.')
    spans = [(0, 8), (fingerprint, end_of_fingerprint), (entries, tensors), (tensors, len(content))]
    chance = random.Random(0)
    for start, end in spans:
        for _ in range(10):
            flipped = flip(content, chance.randrange(start, end), chance.randrange(8))
            require_refusal(
                tmp_path / "0", flipped, "is not one of this pipeline's tensor files|damaged"
            )


def test_what_is_no_whole_file_of_tensors_is_refused_and_not_executed(
    scratch: Scratch, tmp_path: Path
) -> None:
    path, marker = tmp_path / "0", tmp_path / "executed"
    content = scratch("plain", 1).checkpoint("plain").read_bytes()
    trap = f"cos\nmkdir\n(V{marker}\ntR.".encode()  # a pickle of os.mkdir(marker)
    pickle.loads(trap)
    marker.rmdir()  # the trap works
    cut = [content[:length] for length in (0, 1, 8, 1000, len(content) // 2, -1)]
    for other in (*cut, content + b"\0", trap):
        require_refusal(path, other, "is not one of this pipeline's tensor files")
    assert not marker.exists()


def test_a_checkpoint_that_cannot_be_read_may_be_fine_and_is_named_and_left(
    new_place: NewPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = new_place(1)
    path = place.checkpoint("plain")
    path.parent.mkdir(parents=True)
    monkeypatch.chdir(path.parent)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as unreadable:  # which root cannot read either
        unreadable.bind(path.name)
    with pytest.raises(OSError, match=r"'\.checkpoints/plain/0\.safetensors'"):
        place.train("plain")
    assert path.is_socket()


# Parameters that change meanwhile.


def change_after_the_first_epoch(
    place: Place, key: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let the next training of this process find another params.yaml after its first epoch."""

    def and_change(*arguments: Any) -> Iterator[EpochRow]:
        for row in loop.train(*arguments):
            yield row
            if row.epoch == 1:
                place.set(key, value)

    monkeypatch.setattr("stages.train.train", and_change)


@pytest.mark.parametrize(
    ("key", "new", "change"),
    [
        ("variants.plain.lr", 0.5, "lr was 0.01, is 0.5"),
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

DEFAULT = inspect.signature(train.main).parameters["costs_between_saves"].default
NO_TIME = repeat(0.0)

Saving = Callable[..., tuple[list[int], float]]


@pytest.fixture
def saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Saving:
    """Return what trains on a clock on which epochs, copies and writes take those seconds.

    The function returns which epochs are saved, and for how long saving holds the training up.
    """
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters())

    def run(
        epochs: list[float],
        costs_between_saves: float = DEFAULT,
        copying: Iterable[float] = NO_TIME,
        writing: Iterable[float] = NO_TIME,
    ) -> tuple[list[int], float]:
        now = written_at = 0.0
        copies, writes = iter(copying), iter(writing)

        def copied() -> dict[str, torch.Tensor]:
            nonlocal now
            now += next(copies)
            return {}

        def write(*_: object) -> None:
            nonlocal written_at
            written_at = max(written_at, now) + next(writes)

        def wait() -> None:
            nonlocal now
            now = max(now, written_at)

        def submit(work: Callable[..., None], *arguments: object) -> object:
            work(*arguments)
            return SimpleNamespace(result=wait)

        thread = nullcontext(SimpleNamespace(submit=submit))
        monkeypatch.setattr(checkpoints, "ThreadPoolExecutor", lambda max_workers: thread)
        monkeypatch.setattr(checkpoints, "write_tensors", write)
        monkeypatch.setattr(checkpoints, "perf_counter", lambda: now)
        monkeypatch.setattr(network, "state_dict", copied)
        path, progress = tmp_path / "0", Progress()
        with (
            redirect_stdout(io.StringIO()) as printed,
            checkpoints.saving(
                path, {}, len(epochs), network, optimizer, costs_between_saves
            ) as after_epoch,
        ):
            for number, seconds in enumerate(epochs, start=1):
                now += seconds
                progress.rows.append({})
                after_epoch(progress, f"epoch {number}")
        saved = [int(number) for number in re.findall(r"(\d+), saved\n", printed.getvalue())]
        return saved, now - sum(epochs)

    return run


@pytest.mark.parametrize(
    ("epochs", "others", "saved"),
    [
        ([3.0] * 25, {"copying": repeat(1)}, [1, 8, 15, 22, 25]),  # 7 epochs take 21 seconds
        ([20.0] * 9, {"copying": repeat(1)}, [*range(1, 10)]),
        ([19.9] * 9, {"copying": repeat(1)}, [1, 3, 5, 7, 9]),
        ([5.0] * 9, {"copying": repeat(1), "costs_between_saves": 5}, [*range(1, 10)]),
        ([0.001] * 9, {"copying": repeat(1), "costs_between_saves": 0}, [*range(1, 10)]),
        ([10.0] * 9, {"copying": [1] + [0.1] * 8}, [1, 3, 4, 5, 6, 7, 8, 9]),
        # The first save costs nothing yet. The second one waits for 9 seconds.
        ([1.0] * 200, {"writing": repeat(10)}, [1, 2, 182, 183, 200]),
    ],
)
def test_the_first_epoch_is_saved_the_last_and_one_every_20_costs_of_the_save_before(
    epochs: list[float], others: dict[str, Any], saved: list[int], saving: Saving
) -> None:
    assert saving(epochs, **others)[0] == saved


@pytest.mark.parametrize("seed", range(3))
def test_saving_holds_a_long_training_up_for_less_than_a_twentieth(
    seed: int, saving: Saving
) -> None:
    chance = random.Random(seed)
    epochs = [chance.expovariate(1 / chance.choice((0.1, 1, 10))) for _ in range(5_000)]
    saved, held_up = saving(
        epochs,
        copying=(chance.expovariate(1 / 0.2) for _ in epochs),
        writing=(chance.expovariate(1 / 3) for _ in epochs),
    )
    assert 50 < len(saved) < 4_000
    assert 0 < held_up < 0.05 * (sum(epochs) + held_up)


def test_an_epoch_is_told_as_saved_once_it_is_on_disk_and_the_lines_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    may_write = Event()
    network = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters())

    def write(*arguments: Any) -> None:
        may_write.wait()
        write_tensors(*arguments)

    monkeypatch.setattr(checkpoints, "write_tensors", write)
    progress, path = Progress(), tmp_path / "0.safetensors"
    with checkpoints.saving(path, {}, 4, network, optimizer, HARDLY_EVER) as after_epoch:
        for number in range(1, 4):
            progress.rows.append({})
            after_epoch(progress, f"epoch {number}")
        early = capsys.readouterr().out
        may_write.set()
    assert early == ""
    told = "epoch 1, saved\nepoch 2, not saved\nepoch 3, not saved\n"
    assert capsys.readouterr().out == told


# Signals and kills.


@pytest.mark.parametrize(
    ("number", "costs_between_saves", "until"),
    [
        (signal.SIGINT, HARDLY_EVER, ", not saved"),
        (signal.SIGTERM, EVERY_EPOCH, "Epoch [3/"),
        (signal.SIGKILL, HARDLY_EVER, ", not saved"),
        (signal.SIGKILL, EVERY_EPOCH, "Epoch [3/"),
    ],
    ids=["interrupted", "terminated", "killed", "killed while saving"],
)
def test_a_stopped_training_goes_on_after_the_last_epoch_that_is_told_as_saved(
    number: signal.Signals,
    costs_between_saves: float,
    until: str,
    new_place: NewPlace,
    scratch: Scratch,
) -> None:
    place = new_place(ENDLESS)
    command = ("python", "-m", "stages", "train", *place.arguments("plain", costs_between_saves))
    with started(place, *command, PYTHONPATH=str(CHECKOUT)) as training:
        training.until(until)
        training.process.send_signal(number)
        code = training.end()
    told = [int(epoch) for epoch in re.findall(r"Epoch \[(\d+)/", training.output)]
    saved = [int(epoch) for epoch in re.findall(r"Epoch \[(\d+)/.*, saved\n", training.output)]
    epochs = len(read_tensors(place.checkpoint("plain"))[1]["rows"])
    if number == signal.SIGKILL:
        assert code == -number
        assert epochs - saved[-1] in (0, 1)  # one may be written, but not told
        assert costs_between_saves == EVERY_EPOCH or saved == [1]
    else:
        assert code == 128 + number
        name = number.name
        postponed = f"{name} received: this epoch is trained and saved first"
        stopped = postponed if costs_between_saves else f"stopped by {name}|{postponed}"
        assert re.search(rf"\n({stopped}); {GOES_ON}\n", training.output)
        assert epochs == saved[-1] == told[-1]
    place.set("train.epochs", epochs + 2)
    assert f"goes on after epoch {epochs}\n" in place.train("plain")
    assert place.digests() == scratch("plain", epochs + 2).digests()
    assert not [*place.folder.rglob("*.tmp")]


# Files appear whole.


def test_a_file_is_on_disk_before_it_is_renamed_and_then_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[object] = []

    def identity(status: os.stat_result) -> tuple[int, int]:
        return status.st_ino, status.st_size

    def replace(source: Path, target: Path) -> None:
        events.append("renamed")
        source.rename(target)

    monkeypatch.setattr(os, "fsync", lambda file: events.append(identity(os.fstat(file))))
    monkeypatch.setattr(Path, "replace", replace)
    path = tmp_path / "new/table.csv"
    write_table(path, [{"epoch": epoch} for epoch in range(100)])
    assert events == [identity(path.stat()), "renamed", identity(path.parent.stat())]
