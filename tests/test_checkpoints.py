"""A training goes on from its checkpoint, to the bit; from any other state it never does."""

import csv
import os
import random
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from stages.lib import checkpoints, machine
from stages.lib.device import choose_precision
from stages.lib.files import write_csv
from stages.lib.network import vgg11
from stages.lib.params import load_params
from stages.lib.subset import SPLITS, choose, load_split, save_split
from stages.lib.tensorfile import read_tensors, write_tensors
from stages.train import CHECKPOINTS, decisive
from tests.conftest import CHECKOUT, Project
from tools.smoke import read_params, write_params

RATE = 0.01  # of the variants with sgd
ANEW = "starts with epoch 1\n"


@dataclass(frozen=True)
class Place(Project):
    """A folder that a training works in; the code is the checkout's."""

    def command(self, variant: str) -> list[str]:
        """Return the training's command, as dvc.yaml has it."""
        weights = f"models/{variant}/0.safetensors"
        tables = [f"metrics/{kind}/{variant}/0.csv" for kind in ("history", "timing")]
        return ["python", "-m", "stages.train", variant, "0", "data/subset", weights, *tables]

    def train(self, variant: str, fails: bool = False) -> str:
        """Train for as many epochs as the parameters say, and return what was printed."""
        return self.run(*self.command(variant), fails=fails)

    @contextmanager
    def training(self, variant: str) -> Iterator[subprocess.Popen[str]]:
        """Yield a training right after it says that it has finished epoch 1."""
        with subprocess.Popen(
            self.command(variant),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                assert any("Epoch [1/" in line for line in process.stdout)
                yield process
            finally:
                process.kill()

    def checkpoint(self, variant: str) -> Path:
        """Return the path of the variant's checkpoint."""
        return self.folder / CHECKPOINTS / variant / "0.safetensors"

    def take(self, source: "Place", variant: str, name: str | None = None) -> Path:
        """Take over the variant's checkpoint, as one of the variant `name`; return its path."""
        path = self.checkpoint(name or variant)
        path.parent.mkdir(parents=True)
        os.link(source.checkpoint(variant), path)  # safe: whoever writes it replaces it
        return path

    def timings(self, variant: str) -> list[dict[str, str]]:
        """Return the rows of the variant's timing file."""
        with (self.folder / f"metrics/timing/{variant}/0.csv").open(encoding="utf-8") as file:
            return list(csv.DictReader(file))


@pytest.fixture(scope="module", autouse=True)
def process_environment() -> Iterator[None]:
    """Let the stages' processes run the checkout's code, on two threads."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(CHECKOUT))
        patch.setenv("OMP_NUM_THREADS", "2")
        yield


NewPlace = Callable[[int], Place]
Scratch = Callable[[str, int], Place]


@pytest.fixture(scope="module")
def new_place(tmp_path_factory: pytest.TempPathFactory) -> NewPlace:
    """Return a maker of places with six images a split, for trainings of so many epochs."""
    chance = np.random.default_rng(0)
    labels = np.repeat(np.array([3, 5, 8], np.uint8), 2)

    def make(epochs: int) -> Place:
        place = Place(tmp_path_factory.mktemp("place"))
        params = read_params(CHECKOUT)
        params["data"] |= {"per_class": 2, "classes": [3, 5, 8], "pad": 2, "scale": "none"}
        params["train"] = {"epochs": epochs, "batch_size": 4, "device": "cpu", "precision": "fp32"}
        network = {"activation": "relu", "dropout": 0.5}
        params["variants"] = {
            "adam": {**network, "optimizer": "adam", "lr": 0.001},
            "sgd": {**network, "optimizer": "sgd", "lr": RATE, "momentum": 0.9},
            "plain": {**network, "optimizer": "sgd", "lr": RATE},
        }
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


@pytest.mark.parametrize(("variant", "epochs"), [("adam", 2), ("sgd", 2), ("plain", 3)])
def test_more_epochs_go_on_to_the_bytes_of_one_go(
    variant: str, epochs: int, new_place: NewPlace, scratch: Scratch
) -> None:
    place = new_place(epochs)
    place.take(scratch(variant, 1), variant)
    output = place.train(variant)
    assert f"{place.checkpoint(variant).relative_to(place.folder)}: goes on after epoch 1" in output
    new = [str(epoch) for epoch in range(2, epochs + 1)]
    assert re.findall(r"Epoch \[(.+)/", output) == new
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
    assert read_tensors(scratch("plain", 3).checkpoint("plain"))[1]["rows"][2:]  # left as it was


Refuse = Callable[..., str]


@pytest.fixture(scope="module")
def fresh() -> tuple[nn.Module, torch.optim.Optimizer, dict[str, torch.Tensor]]:
    """Return a network and its optimizer, which nobody may change, and the network's state."""
    network = vgg11("relu", 0.5, "none")
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return network, torch.optim.Adam(network.parameters()), state


@pytest.fixture
def refuse(
    fresh: tuple[nn.Module, torch.optim.Optimizer, dict[str, torch.Tensor]],
    scratch: Scratch,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Refuse:
    """Return what looks for plain's checkpoint, must start anew, and returns why, without a path.

    In this process, since that takes no seconds.
    """
    network, optimizer, before = fresh
    written = read_tensors(scratch("plain", 1).checkpoint("plain"))[1]["fingerprint"]

    def look(place: Place, seed: int = 0, device: str = "cpu") -> str:
        monkeypatch.chdir(place.folder)
        params = load_params()
        precision = choose_precision(params.train.precision, torch.device("cpu"))
        now = decisive(params, "plain", seed, device, precision, Path("data/subset"))
        # The tests load more modules than a training does.
        now = {key: now[key] for key in now if key in written or not key.startswith("stages/")}
        ran_on = machine.describe(torch.device("cpu"))
        path = CHECKPOINTS / "plain/0.safetensors"
        capsys.readouterr()
        progress = checkpoints.resume([path], now, ran_on, params.train.epochs, network, optimizer)
        assert progress == checkpoints.Progress()
        state = network.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
        assert not optimizer.state
        reason, anew, *others = capsys.readouterr().out.splitlines(keepends=True)
        assert reason.startswith(str(path)) and (anew, others) == (ANEW, [])
        return reason.removeprefix(str(path)).strip()

    return look


@pytest.mark.parametrize(
    ("section", "key", "new", "change"),
    [
        ("variants.plain", "lr", 0.02, "lr was 0.01, is 0.02"),
        ("variants.plain", "dropout", 0.25, "dropout was 0.5, is 0.25"),
        ("variants.plain", "momentum", 0.9, "momentum was 0.0, is 0.9"),
        ("variants.plain", "activation", "sigmoid", "activation was relu, is sigmoid"),
        ("train", "batch_size", 5, "batch_size was 4, is 5"),
        ("train", "precision", "bf16", "precision was fp32, is bf16"),
        ("data", "scale", "unit", "scale was none, is unit"),
        ("data", "classes", [5, 3, 8], "classes was [3, 5, 8], is [5, 3, 8]"),
    ],
)
def test_a_changed_parameter_is_named_and_starts_anew(
    section: str,
    key: str,
    new: object,
    change: str,
    new_place: NewPlace,
    scratch: Scratch,
    refuse: Refuse,
) -> None:
    place = new_place(1)
    place.take(scratch("plain", 1), "plain")
    with place.params() as params:
        for name in section.split("."):
            params = params[name]
        params[key] = new
    assert refuse(place) == f"is of another training: {change}"


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
    assert f"optimizer was adam, is sgd, lr was 0.001, is {RATE}\n" + ANEW in place.train("plain")
    assert place.digests() == scratch("plain", 1).digests()


def test_another_torchs_checkpoint_starts_anew(
    new_place: NewPlace, scratch: Scratch, refuse: Refuse
) -> None:
    place = new_place(1)
    path = place.take(scratch("plain", 1), "plain")
    tensors, description = read_tensors(path)
    description["fingerprint"]["torch"] = "2.0.0"
    write_tensors(path, tensors, description)
    assert refuse(place) == f"is of another training: torch was 2.0.0, is {version('torch')}"


def test_other_code_starts_anew(new_place: NewPlace, scratch: Scratch) -> None:
    place = new_place(1)
    place.take(scratch("plain", 1), "plain")
    code = place.folder / "stages"  # found before the checkout's
    shutil.copytree(CHECKOUT / "stages", code, ignore=shutil.ignore_patterns("__pycache__"))
    with (place.folder / "stages/lib/network.py").open("a", encoding="utf-8") as file:
        file.write("# a change\n")
    output = place.train("plain")
    reason = "is of another training: stages/lib/network.py was [0-9a-f]{16}, is [0-9a-f]{16}\n"
    assert re.search(reason + ANEW, output)
    assert place.digests() == scratch("plain", 1).digests()


def test_other_threads_go_on_and_it_is_said(
    new_place: NewPlace, scratch: Scratch, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = new_place(2)
    place.take(scratch("plain", 1), "plain")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    output = place.train("plain")
    assert "goes on after epoch 1\nthreads was 2, is 1: bits may differ" in output
    assert [row["threads"] for row in place.timings("plain")] == ["2", "1"]


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
    network = vgg11("relu", 0.5, "none")
    optimizer = torch.optim.SGD(network.parameters())
    ran_on = timing | {key: 1}
    checkpoints.resume([path], description["fingerprint"], ran_on, epochs, network, optimizer)
    goes_on = f"{path}: goes on after epoch {len(values)}\n"
    said += " from those of a run in one go\n" if said else ""
    assert capsys.readouterr().out == goes_on + said


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
    path.unlink()
    shutil.copyfile(scratch("sgd", 1).checkpoint("sgd"), path)
    size = path.stat().st_size
    assert size > 200e6
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
        for _ in range(3):
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
        path.unlink()
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
    os.link(trained.folder / "models/plain/0.safetensors", path)
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
    path.unlink()  # so as not to change the other's
    shutil.copyfile(scratch("plain", 1).checkpoint("plain"), path)
    kept = path.read_bytes()
    path.chmod(0)
    command = place.command("plain")
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
        with damage:
            output = place.train("plain", fails=True)
        assert re.fullmatch(
            r"error: data/subset/test\.safetensors: .*`dvc repro` makes it anew\n", output
        )
    assert not (place.folder / "models").exists()


def test_a_damaged_model_stops_its_evaluation(new_place: NewPlace, scratch: Scratch) -> None:
    place = new_place(1)
    for folder in ("models", "metrics"):
        shutil.copytree(scratch("plain", 1).folder / folder, place.folder / folder)
    outputs = [f"{name}/plain" for name in ("models", "metrics/history")]
    outputs += ["data/subset", "summary.json", "curves.csv", "confusion.csv"]
    evaluate = ["python", "-m", "stages.evaluate", "plain", *outputs]
    for damage in damages(place.folder / "models/plain/0.safetensors"):
        with damage:
            output = place.run(*evaluate, fails=True)
        assert re.fullmatch(
            r"error: models/plain/0\.safetensors: .*`dvc repro` makes it anew\n", output
        )
    assert not (place.folder / "summary.json").exists()


def test_a_folder_within_uses_the_checkpoint_above_and_leaves_it(
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


@pytest.mark.parametrize(
    ("section", "key", "new", "change"),
    [
        ("variants.plain", "lr", 0.5, f"lr was {RATE}, is 0.5"),
        ("train", "epochs", 2, "epochs was 3, is 2"),
        ("train", "device", "mps", "device was cpu, is mps"),
        ("train", "precision", "auto", "precision was fp32, is auto"),
    ],
)
def test_parameters_changed_while_it_trains_leave_a_checkpoint_and_no_outputs(
    section: str, key: str, new: object, change: str, new_place: NewPlace, scratch: Scratch
) -> None:
    place = new_place(3)
    as_it_was = (place.folder / "params.yaml").read_bytes()
    with place.training("plain") as process:
        process.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])  # it had not ended
        with place.params() as params:
            for name in section.split("."):
                params = params[name]
            params[key] = new
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in output) == (1, False)
    assert f"error: while this trained, {change}; no outputs written" in output
    assert not [*place.folder.glob("m*s/**/*.*")]  # in models and metrics
    (place.folder / "params.yaml").write_bytes(as_it_was)
    assert "goes on after epoch 3" in place.train("plain")
    assert place.digests() == scratch("plain", 3).digests()


def test_parameters_of_others_may_change_while_it_trains(
    new_place: NewPlace, scratch: Scratch
) -> None:
    place = new_place(3)
    with place.training("plain") as process:
        process.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])  # it had not ended
        with place.params() as params:
            params["variants"]["adam"]["lr"] = 0.5
        process.send_signal(signal.SIGCONT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert place.digests() == scratch("plain", 3).digests()


def test_an_epoch_that_is_told_outlives_a_kill_and_a_killed_saving_leaves_nothing(
    new_place: NewPlace, scratch: Scratch
) -> None:
    place = new_place(3)
    with place.training("plain") as process:
        process.kill()
    assert process.returncode == -signal.SIGKILL
    leave_half_a_checkpoint(place.checkpoint("plain"))
    assert re.search("goes on after epoch [12]\n", place.train("plain"))
    assert place.digests() == scratch("plain", 3).digests()
    assert not [*place.folder.rglob("*.tmp")]


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
    write_csv(target, [{"epoch": 1}])
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
    write_csv(table, [{"epoch": epoch} for epoch in range(100)])
    write_tensors(tensors, {"zeros": np.zeros(1000)}, {})
    folder = ("fsync", table.parent.stat().st_ino, table.parent.stat().st_size)
    expected = []
    for path in (table, tensors):
        whole = (path.stat().st_ino, path.stat().st_size)
        expected += [("fsync", *whole), ("replace", *whole), folder]
    assert events == expected
