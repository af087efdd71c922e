"""What the guide and other pages say is typed, and their Python is run."""

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stages.learning.idx import parse
from stages.learning.split import load_split
from stages.learning.weights import load_network
from stages.support.cache import cache_object, damaged, md5_of
from stages.support.digests import short_sha256
from tests.conftest import CHECKOUT, UP_TO_DATE, Project, stages_run

GUIDE, SCALING = (
    (CHECKOUT / f"docs/{name}.md").read_text(encoding="utf-8") for name in ("guide", "scaling")
)
EXP_SHOW = (
    "dvc exp show --only-changed --drop 'metrics|models|selected' --keep '.*selected.json:accuracy'"
)


def snippet(text: str) -> str:
    """Return the only Python of the pages that has a text."""
    snippets = re.findall(r"```python\n(.+?)```", GUIDE + SCALING, re.DOTALL)
    (found,) = (str(code) for code in snippets if text in code)
    return found


def run_python(code: str, folder: Path, path: Path | None = None) -> str:
    """Run code in a folder, where it may import what is in a path, and return what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(path or "")}
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    return subprocess.check_output(command, cwd=folder, env=environment, text=True)


def test_pictures_in_folders_become_a_source(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (10, 28, 28), np.uint8)
    for split in ("train", "test"):
        for label, pixels in enumerate(drawn):
            picture = tmp_path / f"pictures/{split}/{label}/a.png"
            picture.parent.mkdir(parents=True)
            image = Image.fromarray(pixels)
            if label == 7:  # black ink on a transparent ground
                image = Image.new("RGBA", image.size)
                image.putalpha(Image.fromarray(255 - pixels))
            image.save(picture)
    run_python(snippet("write_idx"), tmp_path, path=CHECKOUT)
    for prefix in ("train", "t10k"):
        images, labels = (
            parse(name, (tmp_path / "my-digits" / name).read_bytes())
            for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
        )
        np.testing.assert_array_equal(images, drawn)
        assert labels.tolist() == [*range(10)]


@pytest.mark.slow
def test_the_model_is_used_from_python_and_without_this_repository(
    project: Project, tmp_path: Path
) -> None:
    folder = project.folder
    printed = run_python(snippet("predict(network"), folder, path=folder)
    assert printed.startswith("[3]\ntensor(")  # the first label of the tests' subset

    run_python(snippet("torch.export.save"), folder, path=folder)
    exported = folder / "digit-classifier.pt2"
    elsewhere = exported.rename(tmp_path / exported.name)
    assert run_python(snippet("torch.export.load"), tmp_path).count("[") == 1 + 5
    network = load_network(folder / "models/selected.safetensors").eval()
    images = torch.from_numpy(load_split(folder / "data/subset", "test").images)
    assert torch.equal(torch.export.load(elsewhere).module()(images), network(images))


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
    assert EXP_SHOW in GUIDE


@pytest.mark.slow
def test_a_registered_model_is_had_by_name_and_after_a_pull_nothing_runs(
    project: Project, tmp_path: Path
) -> None:
    project.run("dvc", "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    project.commit()
    project.run("gto", "register", "digit-classifier", "--version", "v1.0.0")
    project.run("dvc", "push")
    clone = project.clone(tmp_path / "clone")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    get = ("dvc", "artifacts", "get", str(clone.folder), "digit-classifier")
    Project(elsewhere).run(*get)
    models = (elsewhere / "selected.safetensors", project.folder / "models/selected.safetensors")
    assert short_sha256(models[0]) == short_sha256(models[1])
    clone.run("dvc", "pull")
    assert UP_TO_DATE in clone.run("dvc", "repro")
    assert clone.digests() == project.digests()


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


def test_the_summary_of_a_pull_request_shows_what_changed(project: Project) -> None:
    metrics = project.folder / "metrics/summary/adam.json"
    metrics.write_text(re.sub(r'"best": .*', '"best": 0.5,', metrics.read_text("utf-8")), "utf-8")
    with project.params() as params:
        params["variants"]["adam"]["lr"] = 0.25
    printed = project.run("bash", ".ci/summary", "HEAD")
    assert re.search(r"\| metrics/summary/adam.json \| best +\| .+ \| 0.5 ", printed)
    assert re.search(r"\| params.yaml \| variants.adam.lr \| 0.001 +\| 0.25 ", printed)


@pytest.mark.slow
def test_a_dvc_yaml_for_each_variant_trains_nothing_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = project.digests()
    run_python(snippet("variants"), project.folder)
    (project.folder / "dvc.lock").unlink()
    ran = project.repro()
    evaluations = [f"variants/{name}/dvc.yaml:evaluate" for name in ("adam", "sgd")]
    assert {*evaluations} <= {*ran} <= {*evaluations, "compare", "select"}
    assert project.digests() == before
    assert UP_TO_DATE in project.run("dvc", "status")
    (project.folder / "variants/adam/dvc.lock").write_text("schema: '2", encoding="utf-8")
    mended = project.run("python", "-m", "tools.mend")
    assert "removed variants/adam/dvc.lock, which had been cut short" in mended
    assert {*project.repro()} <= {"variants/adam/dvc.yaml:evaluate", "compare", "select"}
    assert project.digests() == before
    with project.params() as params:
        params["variants"]["adam"]["lr"] /= 2
    assert project.stale() == {"train@0", "compare", "select"}
    planned = project.run("snakemake", "--cores", "2", "--dry-run")
    assert "stage=variants/adam/dvc.yaml:train@0" in planned
    monkeypatch.chdir(project.folder)
    model = Path("models/adam/0.safetensors")
    cached = cache_object(md5_of(model))
    assert cached is not None
    cached.chmod(0o644)
    cached.write_bytes(b"damaged")
    assert damaged(model) == [model, cached]
