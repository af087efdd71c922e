"""A copy of this checkout on small data and a tiny network, driven by the real dvc."""

import hashlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

# Before torch is imported: with several workers on few cores, more threads only wait in turns.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock

from stages.__main__ import parser_of
from stages.support.git import environment_without_git_variables
from tools.copies import copy_checkout, plain_params, write_params

CHECKOUT = Path(__file__).parents[1]
PER_CLASS = 6  # images in the small IDX files
UP_TO_DATE = "Data and pipelines are up to date."
# A VGG11 in small, with 10,866 weights instead of 28,148,362: an epoch on a few images takes
# milliseconds.
TINY = {
    "batch_norm_momentum": 0.1,
    "widths": [8, "M", 8, "M", 8, 8, "M", 16, 16, "M", 16, 16, "M"],
    "hidden": [16, 16],
}


def write_idx(folder: Path, per_class: int = PER_CLASS) -> dict[str, str]:
    """Write four IDX files of noise, brighter for a higher label; return their SHA-256."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    sha256 = {}
    for prefix in ("train", "t10k"):
        labels = random.permutation(np.repeat(np.arange(10, dtype=np.uint8), per_class))
        images = random.integers(0, 20 + 23 * labels[:, None, None], (len(labels), 28, 28))
        for kind, values in (("labels-idx1", labels), ("images-idx3", images.astype(np.uint8))):
            content = idx(values)
            name = f"{prefix}-{kind}-ubyte"
            (folder / name).write_bytes(content)
            sha256[name] = hashlib.sha256(content).hexdigest()
    return sha256


def idx(values: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """Return an array of bytes in the IDX format."""
    return (
        struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape) + values.tobytes()
    )


@dataclass(frozen=True)
class Project:
    """A checkout of its own that the real commands work on."""

    folder: Path

    def run(self, *command: str, fails: bool = False) -> str:
        """Run a command in the checkout and return what it printed, stdout and stderr together."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert (done.returncode != 0) == fails, done.stdout
        assert "Traceback" not in done.stdout, done.stdout
        return done.stdout

    def repro(self, *arguments: str) -> list[str]:
        """Run `dvc repro` and return the stages that it ran, in order."""
        return stages_run(self.run("dvc", "repro", *arguments))

    def stale(self) -> set[str]:
        """Return the stages that `dvc repro` would run because of what is changed by now.

        A stage that would only run because of another's new outputs is not among them. This takes
        seconds, where running the stages would take a minute.
        """
        status: dict[str, Any] = json.loads(self.run("dvc", "status", "--json"))
        return {name.rpartition(":")[2] for name in status}

    def stage(self, name: str, *arguments: str) -> None:
        """Run a stage in this process: its errors are raised, and it takes no lock."""
        main = import_module(f"stages.{name}").main
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(self.folder)
            main(**vars(parser_of(name, main).parse_args(arguments)))

    def stage_again(self, stage: str, variant: str | None = None) -> None:
        """Run a stage of dvc.lock again, in this process; or that of adam for another variant."""
        _, _, _, name, *arguments = self.command(stage)
        if variant:
            arguments = [argument.replace("adam", variant) for argument in arguments]
        self.stage(name, *arguments)

    def command(self, stage: str) -> list[str]:
        """Return the command of a stage, as dvc.lock has it."""
        command: str = self.lock()["stages"][stage]["cmd"]
        return command.split()

    def lock(self) -> dict[str, Any]:
        """Return what dvc.lock says."""
        lock: dict[str, Any] = yaml.safe_load((self.folder / "dvc.lock").read_text("utf-8"))
        return lock

    @contextmanager
    def params(self) -> Iterator[dict[str, Any]]:
        """Yield the parameters, and write them back."""
        params = plain_params(self.folder)
        yield params
        write_params(self.folder, params)

    def commit(self) -> None:
        """Commit everything that git does not ignore."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "a state")

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of every result by its path, timings aside."""
        tops = ("data", "models", "metrics")
        files = [path for top in tops for path in self.folder.glob(f"{top}/**/*")]
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
            if path.is_file() and "timing" not in path.parts and path.name != ".gitignore"
        }

    def clone(self, folder: Path) -> "Project":
        """Return a plain git clone: no cache, no data, no models."""
        self.run("git", "clone", "--quiet", str(self.folder), str(folder))
        return Project(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests of Slurm. They share one Slurm, so they run one after the other."""
    items.sort(key=lambda item: item.path.stem != "test_slurm")


def stages_run(output: str) -> list[str]:
    """Return the stages whose commands DVC says it ran."""
    return re.findall(r"Running stage '([^']+)'", output)


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let commands find this Python's tools, and see nothing of this user's settings."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell script starts `command &` with SIGINT ignored. Child processes inherit that, and
        # would ignore the SIGINT that tests send to them.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        # In a hook, git sets variables that point at the user's repository.
        for name in os.environ.keys() - environment_without_git_variables().keys():
            patch.delenv(name)
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        for kind in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG"):
            patch.setenv(f"DVC_{kind}_DIR", str(tmp_path_factory.mktemp("dvc")))
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "test")
            patch.setenv(f"GIT_{role}_EMAIL", "test@localhost")
        # `Project.stage` runs stages in this process. A stage's own process would set these.
        torch.set_flush_denormal(True)
        torch.set_num_threads(1)
        yield


@pytest.fixture(scope="session")
def new_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Project]:
    """Return a maker of projects that have not run: two variants, three classes, two epochs."""
    source = tmp_path_factory.mktemp("source") / "idx"
    sha256 = write_idx(source)

    def make() -> Project:
        folder = tmp_path_factory.mktemp("project")
        make_project(folder, source, sha256)
        return Project(folder)

    return make


def make_project(folder: Path, source: Path, sha256: dict[str, str]) -> None:
    """Copy the checkout into the folder, with small data and a tiny network, and commit it."""
    copy_checkout(CHECKOUT, folder)
    project = Project(folder)
    with project.params() as params:
        params["datasets"]["small"] = {"sources": [str(source)], "sha256": sha256}
        params["dataset"] = "small"
        params["data"] |= {"per_class": 4, "classes": [3, 5, 8], "pad": 2, "scale": "none"}
        params["network"] = TINY
        params["train"] = {"epochs": 2, "batch_size": 5, "device": "auto", "precision": "auto"}
        params["seeds"] = [0]
        params["variant"] = "adam"
        common = {"activation": "relu", "dropout": 0.5}
        params["variants"] = {
            "sgd": {**common, "optimizer": "sgd", "lr": 0.01, "momentum": 0.9},
            "adam": {**common, "optimizer": "adam", "lr": 0.001},
        }
    # The epochs are so short that most of them would go unsaved.
    pipeline, command = folder / "dvc.yaml", "python -m stages train "
    text = pipeline.read_text(encoding="utf-8")
    assert command in text
    pipeline.write_text(text.replace(command, f"{command}--costs-between-saves 0 "), "utf-8")
    project.commit()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that has run and committed its results; look at it, do not change it.

    All workers share it: the first to ask makes it.
    """
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    project = Project(shared / "finished/project")
    with FileLock(shared / "finished.lock"):
        if not (shared / "finished/done").exists():
            shutil.rmtree(shared / "finished", ignore_errors=True)
            project.folder.mkdir(parents=True)
            make_project(
                project.folder, shared / "finished/idx", write_idx(shared / "finished/idx")
            )
            project.repro()
            project.commit()
            (shared / "finished/done").touch()
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished project, to change."""
    return copy_of(finished, tmp_path)


@pytest.fixture
def inside(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy of the finished project, to change, which is the working directory."""
    monkeypatch.chdir(project.folder)
    return project


def copy_of(project: Project, folder: Path) -> Project:
    """Return a copy of the project within the folder, to change."""
    shutil.copytree(project.folder, folder / "copy", symlinks=True)
    return Project(folder / "copy")
