"""Variants and seeds that params.yaml no longer names, and strange files beside results."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from stages.support.cache import cache_object, md5_of
from stages.support.leftovers import SEED, VARIANT, remove_leftovers
from tests.conftest import Project, stages_run

SUMMARIES, MODELS = Path("metrics/summary"), Path("models/adam")
OF_VARIANT = ("summary/{}.json", "uncertainty/{}.json", "curves/{}.csv", "confusion/{}.csv")


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
    cached = cache_object(md5_of(model))
    assert cached is not None
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


def test_what_nobody_names_is_not_read_nor_what_editors_and_file_browsers_leave(
    inside: Project,
) -> None:
    before = inside.digests()
    results = MODELS, SUMMARIES, Path("metrics/curves"), Path("metrics/history/adam")
    for folder in (Path("data/raw"), Path("data/subset"), *results):
        files = [file for file in folder.glob("[a-z0-9]*") if file.is_file()]
        (folder / ".DS_Store").touch()
        (folder / ".ipynb_checkpoints").mkdir()
        for file in files:
            (folder / ".ipynb_checkpoints" / file.name).write_bytes(file.read_bytes())
            (folder / f"{file.name}~").touch()
    assert inside.run("git", "status", "--porcelain") == ""
    assert inside.stale() == set()

    unnamed = [
        *(Path("metrics", kind.format("old")) for kind in OF_VARIANT),
        *(Path(file) for file in ("models/adam/7.safetensors", "metrics/history/adam/7.csv")),
    ]
    for file in unnamed:
        file.write_text("nonsense", encoding="utf-8")
    inside.stage_again("evaluate@adam")
    inside.stage_again("compare")
    assert {file.read_text(encoding="utf-8") for file in unnamed} == {"nonsense"}
    assert inside.digests().items() >= before.items()


@pytest.mark.slow
def test_a_deleted_variant_stops_nothing_and_its_results_go(inside: Project) -> None:
    with inside.params() as params:
        params["variants"]["sigmoid"] = params["variants"]["adam"] | {"activation": "sigmoid"}
    inside.stage_again("train@adam-0", variant="sigmoid")
    inside.stage_again("evaluate@adam", variant="sigmoid")
    inside.stage_again("compare")
    inside.run("dvc", "commit", "--force")
    inside.commit()
    mine = Path("metrics/curves/mine.csv")
    mine.write_text("by,hand\n", encoding="utf-8")

    with inside.params() as params:
        del params["variants"]["sigmoid"]
    results = {f"metrics/{kind.format('sigmoid')}" for kind in OF_VARIANT}
    # In the folder that --temp makes, git has the same commit and DVC the same cache.
    inside.run("dvc", "exp", "run", "--temp", "--name", "narrower")
    pattern = "refs/exps/*/*/narrower"
    reference = inside.run("git", "for-each-ref", "--format=%(refname)", pattern).strip()
    kept = inside.run("git", "ls-tree", "-r", "--name-only", reference, "metrics").splitlines()
    assert results.isdisjoint(kept) and "metrics/summary/adam.json" in kept
    assert all(Path(name).exists() for name in results)

    printed = inside.run("dvc", "repro")
    assert stages_run(printed) == ["compare"]
    for name in results:
        assert f"{name}: removed, params.yaml no longer names it\n" in printed
    assert f"{mine}: ignored, params.yaml does not name it; left there" in printed
    status = inside.run("git", "status", "--porcelain").splitlines()
    assert {line[3:] for line in status if line.startswith(" D")} == results
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
    of_seed_1 = {
        f"{folder}/{variant}/1.{suffix}"
        for folder, suffix in (("models", "safetensors"), ("metrics/history", "csv"))
        for variant in ("sgd", "adam")
    }
    assert with_both.keys() - finished.digests().keys() == of_seed_1

    with inside.params() as params:
        params["seeds"] = [0]
    printed = inside.run("dvc", "repro")
    assert not {stage for stage in stages_run(printed) if stage.startswith("train")}
    for name in of_seed_1:
        assert f"{name}: removed, params.yaml no longer names it\n" in printed
    assert inside.digests() == finished.digests()
    # DVC records the same too, so a clone that never had the seed has nothing to do.
    for stage, recorded in finished.lock()["stages"].items():
        if not stage.startswith("train"):
            assert inside.lock()["stages"][stage] == recorded, stage

    with inside.params() as params:
        params["seeds"] = [0, 1]
    assert not {stage for stage in inside.repro() if stage.startswith("train")}
    assert inside.digests() == with_both
