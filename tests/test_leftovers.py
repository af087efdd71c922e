"""Variants and seeds that params.yaml no longer names, and strange files beside results."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from stages.support.leftovers import SEED, VARIANT, remove_leftovers
from tests.conftest import Project, stages_run

SUMMARIES, MODELS = Path("metrics/summary"), Path("models/adam")
OF_VARIANT = ("summary/{}.json", "uncertainty/{}.json", "curves/{}.csv", "confusion/{}.csv")


@pytest.fixture
def inside(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A finished project to change, which is the working directory."""
    monkeypatch.chdir(project.folder)
    return project


def test_what_the_last_commit_has_is_removed_and_told(
    inside: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    remove_leftovers(SUMMARIES, VARIANT, ".json", ["adam"])
    assert [file.name for file in SUMMARIES.iterdir()] == ["adam.json"]
    told = "metrics/summary/sgd.json: removed, params.yaml no longer names it\n"
    assert capsys.readouterr().out == told
    assert inside.run("git", "status", "--porcelain") == " D metrics/summary/sgd.json\n"


def test_what_dvcs_cache_has_is_removed_and_comes_back(
    inside: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    before = inside.digests()
    remove_leftovers(MODELS, SEED, ".safetensors", [1, 2])
    assert not [*MODELS.iterdir()]
    assert "models/adam/0.safetensors: removed" in capsys.readouterr().out
    inside.run("dvc", "checkout")
    assert inside.digests() == before


def stays(file: Path, named: Sequence[object], capsys: pytest.CaptureFixture[str]) -> bool:
    """Return whether the file is as before when its folder is cleared, and this is told."""
    content = file.read_bytes()
    remove_leftovers(file.parent, VARIANT, file.suffix, named)
    told = f"{file}: ignored, params.yaml does not name it; left there"
    return told in capsys.readouterr().out and file.read_bytes() == content


def test_what_neither_has_stays(inside: Project, capsys: pytest.CaptureFixture[str]) -> None:
    edited, staged, new = (SUMMARIES / name for name in ("sgd.json", "staged.json", "new.json"))
    edited.write_text("{}", encoding="utf-8")  # the commit has other bytes
    staged.write_text("[]", encoding="utf-8")  # git forgets what was never committed
    inside.run("git", "add", str(staged))
    new.touch()
    for file in (edited, staged, new):
        assert stays(file, ["adam"], capsys), file


def test_what_is_damaged_in_dvcs_cache_stays(
    inside: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    model = MODELS / "0.safetensors"
    (cached,) = (
        file
        for file in Path(".dvc/cache/files/md5").glob("*/*")
        if file.read_bytes() == model.read_bytes()
    )
    cached.chmod(0o644)
    cached.write_bytes(cached.read_bytes()[:-1])
    assert stays(model, [1], capsys)


def test_a_file_that_is_not_named_as_a_result_is_let_alone(
    inside: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = {".DS_Store", "sgd.json~", "Notes.json", "two words.json", ".hidden.json", "x.csv"}
    for name in strange:
        (SUMMARIES / name).touch()
    (SUMMARIES / "folder.json").mkdir()
    best = MODELS / "best.safetensors"  # not a seed
    best.touch()
    inside.run("git", "add", "--all", "--force")
    inside.run("git", "commit", "--quiet", "--message", "strange files")
    remove_leftovers(SUMMARIES, VARIANT, ".json", ["sgd", "adam"])
    remove_leftovers(MODELS, SEED, ".safetensors", [0])
    assert capsys.readouterr().out == ""
    assert best.exists()
    found = {file.name for file in SUMMARIES.iterdir()}
    assert found == strange | {"folder.json", "sgd.json", "adam.json"}


def test_git_and_dvc_are_asked_only_when_there_is_something_to_remove(
    inside: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked"))
    remove_leftovers(SUMMARIES, VARIANT, ".json", ["sgd", "adam", "new"])
    remove_leftovers(Path("metrics/missing"), VARIANT, ".json", ["sgd"])


def test_where_there_is_no_git_and_no_dvc_all_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("sgd.json")
    file.touch()
    assert stays(file, ["adam"], capsys)  # no repository
    monkeypatch.setenv("PATH", str(tmp_path))
    assert stays(file, ["adam"], capsys)  # no command


def test_a_folder_of_a_larger_repository_is_known_to_its_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner/metrics").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "inner")
    Path("metrics/sgd.json").write_text("{}", encoding="utf-8")
    for command in (["init"], ["add", "."], ["commit", "--message", "all"]):
        subprocess.run(["git", *command], check=True, capture_output=True)
    remove_leftovers(Path("metrics"), VARIANT, ".json", ["adam"])
    assert not [*Path("metrics").iterdir()]


def make(project: Project, like: str, old: str, new: str) -> None:
    """Run a stage in this process as dvc.lock has a similar one, with other words."""
    _, _, _, name, *arguments = project.command(like)
    project.stage(name, *(argument.replace(old, new) for argument in arguments))


def test_what_nobody_names_is_not_read(inside: Project) -> None:
    before = inside.digests()
    strange = [
        *(Path("metrics", kind.format("old")) for kind in OF_VARIANT),
        *(Path(file) for file in ("models/adam/7.safetensors", "metrics/history/adam/7.csv")),
    ]
    for file in strange:
        file.write_text("nonsense", encoding="utf-8")
    for stage in ("evaluate@adam", "compare"):
        make(inside, stage, "", "")
    for file in strange:
        assert file.read_text(encoding="utf-8") == "nonsense"
        file.unlink()
    assert inside.digests() == before


def test_what_editors_and_file_browsers_leave_changes_nothing(inside: Project) -> None:
    before = inside.digests()
    data = Path("data/raw"), Path("data/subset")
    results = MODELS, SUMMARIES, Path("metrics/curves"), Path("metrics/history/adam")
    for folder in (*data, *results):
        (folder / ".DS_Store").touch()
        (folder / ".ipynb_checkpoints").mkdir()
        for file in [*folder.glob("[a-z0-9]*")]:
            if file.is_file():
                (folder / ".ipynb_checkpoints" / file.name).write_bytes(file.read_bytes())
                (folder / f"{file.name}~").touch()
    assert inside.stale() == set()
    assert inside.run("git", "status", "--porcelain") == ""
    for stage in ("evaluate@adam", "compare"):
        make(inside, stage, "", "")
    assert inside.stale() == set()
    assert {name: sha for name, sha in inside.digests().items() if name in before} == before


@pytest.mark.slow
def test_deleted_variants_stop_nothing_and_their_results_go(inside: Project) -> None:
    with inside.params() as params:
        for name in ("sigmoid", "other"):
            params["variants"][name] = params["variants"]["adam"] | {"activation": "sigmoid"}
    for name in ("sigmoid", "other"):
        make(inside, "train@adam-0", "adam", name)
        make(inside, "evaluate@adam", "adam", name)
    make(inside, "compare", "", "")
    inside.run("dvc", "commit", "--force")
    inside.commit()
    mine = Path("metrics/curves/mine.csv")
    mine.write_text("by,hand\n", encoding="utf-8")

    with inside.params() as params:
        del params["variants"]["sigmoid"], params["variants"]["other"]
    results = [
        f"metrics/{kind.format(name)}" for kind in OF_VARIANT for name in ("sigmoid", "other")
    ]
    # In the folder that --temp makes, git has the same commit and DVC the same cache.
    inside.run("dvc", "exp", "run", "--temp", "--name", "narrower")
    pattern = "refs/exps/*/*/narrower"
    reference = inside.run("git", "for-each-ref", "--format=%(refname)", pattern).strip()
    kept = inside.run("git", "ls-tree", "-r", "--name-only", reference, "metrics").splitlines()
    assert not set(results) & set(kept)
    assert "metrics/summary/adam.json" in kept
    assert all(Path(name).exists() for name in results)

    printed = inside.run("dvc", "repro")
    assert stages_run(printed) == ["compare"]
    for name in results:
        assert f"{name}: removed, params.yaml no longer names it\n" in printed
    assert f"{mine}: ignored, params.yaml does not name it; left there" in printed
    status = inside.run("git", "status", "--porcelain").splitlines()
    assert sorted(line[3:] for line in status if line.startswith(" D")) == sorted(results)
    assert f"?? {mine}" in status
    assert inside.stale() == set()


@pytest.mark.slow
def test_a_dropped_seed_leaves_no_trace_and_comes_back_without_training(
    inside: Project, finished: Project
) -> None:
    ran = stages_run(inside.run("dvc", "exp", "run", "--set-param", "seeds=[0,1]"))
    assert {stage for stage in ran if stage.startswith("train")} == {"train@sgd-1", "train@adam-1"}
    inside.commit()
    with_both = inside.digests()
    of_seed_1 = set(with_both) - set(finished.digests())
    assert of_seed_1 == {
        f"{folder}/{variant}/1.{suffix}"
        for folder, suffix in (("models", "safetensors"), ("metrics/history", "csv"))
        for variant in ("sgd", "adam")
    }

    with inside.params() as params:
        params["seeds"] = [0]
    printed = inside.run("dvc", "repro")
    assert {"evaluate@sgd", "evaluate@adam"} <= set(stages_run(printed))
    assert not {stage for stage in stages_run(printed) if stage.startswith("train")}
    for name in of_seed_1:
        assert f"{name}: removed, params.yaml no longer names it\n" in printed
    assert inside.digests() == finished.digests()
    # What DVC records is the same too: a clone that never had the seed has nothing to do.
    for stage, recorded in finished.lock()["stages"].items():
        if not stage.startswith("train"):
            assert inside.lock()["stages"][stage] == recorded, stage

    with inside.params() as params:
        params["seeds"] = [0, 1]
    assert not {stage for stage in inside.repro() if stage.startswith("train")}
    assert inside.digests() == with_both
