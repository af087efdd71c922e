"""A copy of this checkout on small data of its own, driven by the real dvc."""

import hashlib
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
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tools.faults import digests
from tools.smoke import copy_checkout, read_params, write_params

CHECKOUT = Path(__file__).parents[1]
PER_CLASS = 6  # images in the small IDX files


def write_idx(folder: Path, per_class: int = PER_CLASS) -> dict[str, str]:
    """Write four IDX files of random blots, a brightness per class; return their SHA-256."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    digests = {}
    for prefix in ("train", "t10k"):
        labels = random.permutation(np.repeat(np.arange(10, dtype=np.uint8), per_class))
        images = random.integers(0, 20 + 23 * labels[:, None, None], (len(labels), 28, 28))
        for kind, magic, values in (("labels-idx1", 0x801, labels), ("images-idx3", 0x803, images)):
            header = struct.pack(f">{1 + values.ndim}I", magic, *values.shape)
            content = header + values.astype(np.uint8).tobytes()
            name = f"{prefix}-{kind}-ubyte"
            (folder / name).write_bytes(content)
            digests[name] = hashlib.sha256(content).hexdigest()
    return digests


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

    @contextmanager
    def params(self) -> Iterator[dict[str, Any]]:
        """Yield the parameters, and write them back."""
        params = read_params(self.folder)
        yield params
        write_params(self.folder, params)

    def commit(self) -> None:
        """Commit everything that git does not ignore."""
        self.run("git", "add", "--all")
        self.run("git", "commit", "--quiet", "--message", "a state")

    def digests(self) -> dict[str, str]:
        """Return the digest of every result, timings aside."""
        return digests(self.folder)

    def clone(self, folder: Path) -> "Project":
        """Return a plain git clone: no cache, no data, no models."""
        self.run("git", "clone", "--quiet", str(self.folder), str(folder))
        return Project(folder)


def stages_run(output: str) -> list[str]:
    """Return the stages whose commands DVC says it ran."""
    return re.findall(r"Running stage '([^']+)'", output)


@pytest.fixture(scope="session", autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let commands find this Python's tools, and see nothing of this user's settings."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A script's `command &` ignores it, and so would whatever the tests start and interrupt.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        for kind in ("SITE_CACHE", "GLOBAL_CONFIG", "SYSTEM_CONFIG"):
            patch.setenv(f"DVC_{kind}_DIR", str(tmp_path_factory.mktemp("dvc")))
        patch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
        patch.setenv("OMP_WAIT_POLICY", "passive")  # threads that spin slow down what runs beside
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "test")
            patch.setenv(f"GIT_{role}_EMAIL", "test@localhost")
        yield


@pytest.fixture(scope="session")
def new_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Project]:
    """Return a maker of projects that have not run: two variants, three classes, two epochs."""
    idx = tmp_path_factory.mktemp("source") / "idx"
    digests = write_idx(idx)

    def make() -> Project:
        project = Project(tmp_path_factory.mktemp("project"))
        copy_checkout(CHECKOUT, project.folder)
        with project.params() as params:
            params["datasets"]["small"] = {"sources": [str(idx)], "sha256": digests}
            params["dataset"] = "small"
            params["data"] |= {"per_class": 4, "classes": [3, 5, 8], "pad": 2, "scale": "none"}
            params["train"] |= {"epochs": 2, "batch_size": 5}
            params["seeds"] = [0]
            params["variant"] = "adam"
            network = {"activation": "relu", "dropout": 0.5}
            params["variants"] = {
                "sgd": {**network, "optimizer": "sgd", "lr": 0.01, "momentum": 0.9},
                "adam": {**network, "optimizer": "adam", "lr": 0.001},
            }
        project.commit()
        return project

    return make


@pytest.fixture(scope="session")
def finished(new_project: Callable[[], Project]) -> Project:
    """A project that has run and committed its results; look at it, do not change it."""
    project = new_project()
    project.repro()
    project.commit()
    return project


@pytest.fixture
def project(finished: Project, tmp_path: Path) -> Project:
    """A copy of the finished project, to change."""
    return copy_of(finished, tmp_path)


def copy_of(project: Project, folder: Path) -> Project:
    """Return a copy of the project within the folder, to change."""

    def link_large(source: str, target: str) -> None:
        # Whoever writes these files replaces them, so that sharing them is safe, and quick.
        large = Path(source).stat().st_size > 1_000_000
        (os.link if large else shutil.copy2)(source, target)

    shutil.copytree(project.folder, folder / "copy", copy_function=link_large)
    return Project(folder / "copy")
