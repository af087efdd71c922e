"""dvc.yaml as it stands, run by dvc as it is: what reruns, what is the same, what stops."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.lib.device import bf16_instructions
from tests.conftest import Project, stages_run

UP_TO_DATE = "Data and pipelines are up to date."


def chart_points(plots: str, title: str) -> list[dict[str, str]]:
    """Return the data points of a chart that `dvc plots ... --json` printed."""
    (chart,) = json.loads(plots)["data"][title]
    points: list[dict[str, str]] = chart["content"]["data"]["values"]
    return points


def test_everything_is_made_and_a_second_run_does_nothing(finished: Project) -> None:
    names = set(finished.digests())
    for variant in ("sgd", "adam"):
        assert f"models/{variant}/0.safetensors" in names
        assert f"metrics/history/{variant}/0.csv" in names
        assert f"metrics/summary/{variant}.json" in names
        assert f"metrics/curves/{variant}.csv" in names
        assert f"metrics/confusion/{variant}.csv" in names
        assert (finished.folder / f"metrics/timing/{variant}/0.csv").exists()
    assert {"data/raw/t10k-labels-idx1-ubyte", "data/subset/test.safetensors"} <= names
    assert {"metrics/claims.json", "metrics/selected.csv", "models/selected.safetensors"} <= names
    assert len([name for name in names if name.startswith("metrics/figures/")]) == 7
    assert not [name for name in names if name.endswith((".tmp", ".gitignore"))]
    assert UP_TO_DATE in finished.run("dvc", "repro")
    assert UP_TO_DATE in finished.run("dvc", "status")
    assert finished.run("git", "status", "--porcelain") == ""


def test_running_from_scratch_gives_the_same_bytes(
    finished: Project, new_project: Callable[[], Project]
) -> None:
    again = new_project()
    assert "train@adam-0" in again.repro()
    assert again.digests() == finished.digests()


def test_a_learning_rate_reruns_only_its_variant_and_going_back_runs_nothing(
    project: Project,
) -> None:
    before = project.digests()
    with project.params() as params:
        params["variants"]["sgd"]["lr"] = 1e-05  # which YAML 1.1 reads as a text
    assert project.repro() == ["train@sgd-0", "evaluate@sgd", "compare"]
    with project.params() as params:
        params["variants"]["adam"]["lr"] = 0.002
    assert set(project.repro()) == {"train@adam-0", "evaluate@adam", "compare", "select", "promote"}
    project.run("git", "checkout", "--quiet", "params.yaml")
    # DVC keeps no old results of `compare`, since claims.json is in git alone; it takes seconds.
    assert project.repro() == ["compare"]
    assert project.digests() == before


def test_variants_of_machines_with_different_precisions_are_not_compared(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other kind of machine: one that multiplies bfloat16, or one that does not.
    here, there = ("bf16", "fp32") if bf16_instructions() else ("fp32", "bf16")
    other = (
        f"import torch\ntorch.cpu.get_capabilities = lambda: {{'amx_bf16': {there == 'bf16'}}}\n"
    )
    (tmp_path / "sitecustomize.py").write_text(other, encoding="utf-8")
    with project.params() as params:
        params["variants"]["sgd"]["lr"] = 0.02
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        output = project.run("dvc", "repro", fails=True)
    assert stages_run(output) == ["train@sgd-0", "evaluate@sgd", "compare"]
    found = f"sgd with seed 0 in {there}, adam with seed 0 in {here}"
    assert f"\nerror: metrics/curves: {found}: machines differ in what train.precision" in output

    with project.params() as params:
        params["train"]["precision"] = there
    assert "train@adam-0" in project.repro()


def test_a_figure_reruns_only_compare(project: Project) -> None:
    with (project.folder / "stages/lib/figures.py").open("a", encoding="utf-8") as module:
        module.write("# another figure\n")
    assert project.repro() == ["compare"]


def test_a_seed_trains_only_itself_and_leaves_without_a_trace(project: Project) -> None:
    before = project.digests()
    ran = stages_run(project.run("dvc", "exp", "run", "--set-param", "seeds=[0,1]"))
    assert [stage for stage in ran if stage.startswith("train")] == ["train@sgd-1", "train@adam-1"]
    assert set(ran[2:]) == {"evaluate@sgd", "evaluate@adam", "compare", "select"}
    summary = json.loads((project.folder / "metrics/summary/adam.json").read_text())
    assert summary["seeds"] == 2
    claims = json.loads((project.folder / "metrics/claims.json").read_text())
    assert len(claims["adam-final"]["pairs"]) == 2

    with project.params() as params:
        params["seeds"] = [0]
    output = project.run("dvc", "repro", fails=True)
    assert "1.safetensors" in output
    assert "`dvc checkout` removes it" in output
    project.run("dvc", "checkout")
    project.repro()
    assert project.digests() == before
    assert not (project.folder / "metrics/timing/adam/1.csv").exists()


def test_a_variant_trains_only_itself_and_leaves_without_a_trace(project: Project) -> None:
    before = project.digests()
    with project.params() as params:
        params["variants"]["sigmoid"] = params["variants"]["adam"] | {"activation": "sigmoid"}
    assert project.repro() == ["train@sigmoid-0", "evaluate@sigmoid", "compare"]
    for title in ("Test accuracy", "Train accuracy", "Test loss"):
        points = chart_points(project.run("dvc", "plots", "show", "--json"), title)
        assert {point["variant"] for point in points} == {"sgd", "adam", "sigmoid"}, title

    assert "not in git yet; `git add metrics dvc.lock` first" in project.run(
        *("python", "-m", "tools.variants"), fails=True
    )
    project.run("git", "add", "metrics", "dvc.lock", "params.yaml")
    assert stages_run(project.run("python", "-m", "tools.variants")) == ["select"] * 3

    with project.params() as params:
        del params["variants"]["sigmoid"]
    output = project.run("dvc", "repro", fails=True)
    assert "sigmoid.json" in output
    assert "remove its files under" in output
    for kind in ("summary/sigmoid.json", "curves/sigmoid.csv", "confusion/sigmoid.csv"):
        (project.folder / "metrics" / kind).unlink()
    project.run("dvc", "checkout")
    project.repro()
    assert project.digests() == before


def test_variants_are_compared_without_training_even_in_a_plain_clone(
    finished: Project, tmp_path: Path
) -> None:
    clone = finished.clone(tmp_path / "clone")
    for _ in range(2):
        output = clone.run("python", "-m", "tools.variants")
        assert stages_run(output) == ["select", "select"]
        assert clone.run("git", "status", "--porcelain") == ""
        diff = json.loads(clone.run("dvc", "metrics", "diff", "sgd", "adam", "--json"))
        assert list(diff) == ["metrics/selected.json"]
        for revision, variant in (("old", "sgd"), ("new", "adam")):
            summary = json.loads((clone.folder / f"metrics/summary/{variant}.json").read_text())
            compared = diff["metrics/selected.json"]["test.loss"][revision]
            assert compared == summary["test"]["loss"]
        params = json.loads(clone.run("dvc", "params", "diff", "sgd", "adam", "--json"))
        assert params == {"params.yaml": {"variant": {"old": "sgd", "new": "adam"}}}
        charts = clone.run("dvc", "plots", "diff", "sgd", "adam", "--json")
        points = chart_points(charts, "metrics/selected.csv")
        drawn = {(point["rev"], point["variant"]) for point in points}
        assert drawn == {("sgd", "sgd"), ("adam", "adam")}
        # Experiments of this commit must not stand in the way after the next one.
        clone.run("git", "commit", "--quiet", "--allow-empty", "--message", "another commit")


def test_after_a_pull_nothing_runs(project: Project, tmp_path: Path) -> None:
    project.run("dvc", "remote", "add", "--default", "shared", str(tmp_path / "remote"))
    project.commit()
    project.run("dvc", "push")
    clone = project.clone(tmp_path / "clone")
    clone.run("dvc", "pull")
    assert UP_TO_DATE in clone.run("dvc", "repro")
    assert clone.digests() == project.digests()


def test_a_plain_clone_needs_no_stage(finished: Project, tmp_path: Path) -> None:
    clone = finished.clone(tmp_path / "clone")
    assert stages_run(clone.run("dvc", "repro", "--allow-missing", "--dry")) == []


def test_swapped_weights_stop_evaluate_and_promote(project: Project) -> None:
    sgd, adam = (project.folder / f"models/{variant}/0.safetensors" for variant in ("sgd", "adam"))
    kept = sgd.rename(sgd.with_suffix(".kept"))
    adam.rename(sgd)
    kept.rename(adam)
    output = project.run("dvc", "repro", "--single-item", "--force", "evaluate@sgd", fails=True)
    assert "they are not of one training" in output
    assert "dvc checkout" in output
    output = project.run("dvc", "repro", "--single-item", "--force", "promote", fails=True)
    assert "is of variant sgd and seed 0, params.yaml selects adam and 0" in output


def test_curves_of_another_run_stop_compare(project: Project) -> None:
    curves = project.folder / "metrics/curves/adam.csv"
    curves.write_text("".join(curves.read_text().splitlines(keepends=True)[:-1]))
    output = project.run("dvc", "repro", "--single-item", "--force", "compare", fails=True)
    assert "metrics/curves/adam.csv: other seeds than params.yaml, or other epochs" in output


def test_an_accuracy_that_is_none_stops_evaluate(project: Project) -> None:
    history = project.folder / "metrics/history/adam/0.csv"
    names, first, *others = history.read_text().splitlines()
    values = first.split(",")
    values[names.split(",").index("test_accuracy")] = "1.5"
    history.unlink()  # it may be a link into DVC's cache
    history.write_text("\n".join([names, ",".join(values), *others, ""]))
    output = project.run("dvc", "repro", "--single-item", "--force", "evaluate@adam", fails=True)
    assert "0.csv has a test accuracy that is none; `dvc checkout --force` restores it" in output


def test_metrics_show_is_one_table_with_the_same_columns_for_all(finished: Project) -> None:
    table = json.loads(finished.run("dvc", "metrics", "show", "--json"))[""]["data"]
    names = {"metrics/summary/sgd.json", "metrics/summary/adam.json", "metrics/selected.json"}
    assert set(table) == names
    assert len({json.dumps(sorted(entry["data"]["test"])) for entry in table.values()}) == 1


def test_progress_is_told_while_it_grows(finished: Project) -> None:
    *lines, widest = finished.run("python", "-m", "tools.progress").splitlines()
    # The most that Wilson's interval reaches, at one half; of 12 images.
    half = 1.959964 / (2 * math.sqrt(12 + 1.959964**2))
    assert widest.startswith(f"± {half:.4f} at most: ")
    assert [line.split()[:5] for line in lines] == [
        ["sgd", "seed", "0", "2", "of"],
        ["adam", "seed", "0", "2", "of"],
    ]
    rows = (finished.folder / "metrics/history/adam/0.csv").read_text().splitlines()
    column = rows[0].split(",").index("test_accuracy")
    accuracies = [f"{float(row.split(',')[column]):.4f}" for row in rows[1:]]
    assert lines[1].split()[-2:] == accuracies


def test_progress_of_none_and_of_no_checkpoint(project: Project) -> None:
    checkpoint = project.folder / ".checkpoints/sgd/0.safetensors"
    checkpoint.unlink()
    assert "seed 0   0 of 2 epochs" in project.run("python", "-m", "tools.progress")
    checkpoint.write_text("no checkpoint", encoding="utf-8")
    assert "is not a checkpoint" in project.run("python", "-m", "tools.progress", fails=True)


def test_progress_names_a_damaged_subset(project: Project) -> None:
    subset = project.folder / "data/subset/test.safetensors"
    subset.unlink()  # it may be a link
    subset.write_text("no tensors", encoding="utf-8")
    output = project.run("python", "-m", "tools.progress", fails=True)
    assert "error: data/subset/test.safetensors" in output
