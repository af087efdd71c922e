"""What the guide says about sharing a model, a big disk, and a table of experiments, typed."""

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from stages.support.digests import short_sha256
from tests.conftest import CHECKOUT, Project, stages_run
from tests.test_mend import UP_TO_DATE

EXP_SHOW = (
    "dvc exp show --only-changed --drop 'metrics|models|selected' --keep '.*selected.json:accuracy'"
)


def in_a_terminal(project: Project, command: str, columns: int) -> list[str]:
    """Return the lines that a command prints in a terminal, without colours."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "DVC_PAGER": "cat"}
    with subprocess.Popen(
        ["sh", "-c", command],
        cwd=project.folder,
        env=environment,
        stdin=its,
        stdout=its,
        stderr=its,
        start_new_session=True,
    ):
        os.close(its)
        printed = b""
        with suppress(OSError):  # This is how a terminal ends on Linux.
            while block := os.read(ours, 1 << 16):
                printed += block
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", printed.decode()).splitlines()


@pytest.mark.slow
def test_experiments_are_shown_with_what_changed_in_120_columns(project: Project) -> None:
    project.run("dvc", "exp", "run", "--name", "longer", "-S", "train.epochs=3")
    project.run("dvc", "exp", "run", "--name", "slower", "-S", "variants.adam.lr=0.00025")
    lines = in_a_terminal(project, EXP_SHOW, 120)
    assert max(map(len, lines)) <= 120
    (header,) = (line.split() for line in lines if "Experiment" in line)
    assert {"metrics/selected.json:accuracy", "train.epochs", "variants.adam.lr"} <= set(header)
    rows = {name: line for line in lines for name in ("main", "longer", "slower") if name in line}
    assert re.search(r" 2 +0.001 ", rows["main"])
    assert re.search(r" 3 +0.001 ", rows["longer"])
    assert re.search(r" 3 +0.00025 ", rows["slower"])
    assert "…" not in "".join(lines)
    assert EXP_SHOW in (CHECKOUT / "docs/guide.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_registered_model_is_had_by_name_from_another_folder(
    project: Project, tmp_path: Path
) -> None:
    project.run("dvc", "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    project.commit()
    project.run("gto", "register", "digit-classifier", "--version", "v1.0.0")
    project.run("dvc", "push", "promote")
    clone = project.clone(tmp_path / "clone")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    get = ("dvc", "artifacts", "get", str(clone.folder), "digit-classifier")
    Project(elsewhere).run(*get)
    models = (elsewhere / "selected.safetensors", project.folder / "models/selected.safetensors")
    assert short_sha256(models[0]) == short_sha256(models[1])


@pytest.mark.slow
def test_a_linked_folder_is_refused_and_a_cache_on_the_big_disk_is_the_way(
    finished: Project, tmp_path: Path
) -> None:
    clone, disk = finished.clone(tmp_path / "clone"), tmp_path / "disk"
    (disk / "data").mkdir(parents=True)
    shutil.rmtree(clone.folder / "data", ignore_errors=True)
    (clone.folder / "data").symlink_to(disk / "data")
    assert "is outside of git repository" in clone.run("dvc", "repro", fails=True)

    (clone.folder / "data").unlink()
    clone.run("git", "checkout", "--quiet", ".")
    clone.run("dvc", "cache", "dir", "--local", str(disk / "cache"))
    clone.run("dvc", "config", "--local", "cache.type", "symlink")
    clone.repro()
    assert clone.digests() == finished.digests()
    weights = clone.folder / "models/adam/0.safetensors"
    assert weights.resolve().is_relative_to(disk)
    assert UP_TO_DATE in clone.run("dvc", "status")
    assert stages_run(clone.run("dvc", "repro", "--force", "--single-item", "evaluate@adam"))
    assert clone.run("git", "status", "--porcelain", "metrics") == ""
