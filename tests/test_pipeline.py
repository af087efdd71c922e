"""dvc.yaml as it stands, read by dvc as it is: what reruns, what is the same, what stops."""

import json
import math
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stages.learning.device import choose_precision
from stages.reporting.summary import Summary
from stages.support.atomic import write_json
from stages.support.errors import InputError
from tests.conftest import Project, stages_run
from tools import progress, variants

UP_TO_DATE = "Data and pipelines are up to date."
TRAININGS = {"train@sgd-0", "train@adam-0"}
EVALUATIONS = {"evaluate@sgd", "evaluate@adam"}


def chart_points(plots: str, title: str) -> list[dict[str, str]]:
    """Return the data points of a chart that `dvc plots ... --json` printed."""
    (chart,) = json.loads(plots)["data"][title]
    points: list[dict[str, str]] = chart["content"]["data"]["values"]
    return points


def readers_of_changes(project: Project) -> dict[str, set[str]]:
    """Return the stages that a changed dependency makes stale, by its path."""
    readers = defaultdict(set)
    for stage, reasons in json.loads(project.run("dvc", "status", "--json")).items():
        for reason in reasons:
            for path in reason.get("changed deps", {}):
                readers[path].add(stage)
    return dict(readers)


def edit(project: Project, *names: str) -> None:
    """Append a comment to modules of the project."""
    for name in names:
        with (project.folder / name).open("a", encoding="utf-8") as module:
            module.write("# edited\n")


def rewrite(path: Path, content: str) -> None:
    """Replace a result, which may be a link into DVC's cache."""
    path.unlink()
    path.write_text(content, encoding="utf-8")


def stage_again(project: Project, stage: str) -> None:
    """Run a stage of dvc.lock again, in this process."""
    _, _, _, name, *arguments = project.command(stage)
    project.stage(name, *arguments)


def test_everything_is_made_and_a_second_run_does_nothing(project: Project) -> None:
    names = set(project.digests())
    for variant in ("sgd", "adam"):
        assert f"models/{variant}/0.safetensors" in names
        assert f"metrics/history/{variant}/0.csv" in names
        assert f"metrics/summary/{variant}.json" in names
        assert f"metrics/uncertainty/{variant}.json" in names
        assert f"metrics/curves/{variant}.csv" in names
        assert f"metrics/confusion/{variant}.csv" in names
        assert (project.folder / f"metrics/timing/{variant}/0.csv").exists()
    assert {"data/raw/t10k-labels-idx1-ubyte", "data/subset/test.safetensors"} <= names
    assert {"metrics/curves.csv", "metrics/selected.csv", "metrics/selected.json"} <= names
    assert {"metrics/selected.yaml", "models/selected.safetensors"} <= names
    assert len([name for name in names if name.startswith("metrics/figures/")]) == 6
    assert not [name for name in names if name.endswith((".tmp", ".gitignore"))]
    assert UP_TO_DATE in project.run("dvc", "repro")
    assert project.run("git", "status", "--porcelain") == ""


def test_running_from_scratch_gives_the_same_bytes(
    finished: Project, new_project: Callable[[], Project]
) -> None:
    again = new_project()
    for stage in finished.lock()["stages"]:
        _, _, _, name, *arguments = finished.command(stage)
        again.stage(name, *arguments)
    assert again.digests() == finished.digests()


def test_an_edit_makes_exactly_the_stages_stale_that_the_room_says(project: Project) -> None:
    modules = [*project.folder.glob("stages/**/*.py")]
    edit(project, *(str(module.relative_to(project.folder)) for module in modules))
    learning = project.folder / "stages/learning"
    (learning / "schedule.py").touch()  # a folder is a dependency with whatever it has
    assert readers_of_changes(project) == {
        "stages/download.py": {"download"},
        "stages/subset.py": {"subset"},
        "stages/train.py": TRAININGS,
        "stages/evaluate.py": EVALUATIONS,
        "stages/compare.py": {"compare"},
        "stages/select.py": {"select"},
        "stages/promote.py": {"promote"},
        "stages/learning": TRAININGS | EVALUATIONS,
        "stages/learning/idx.py": {"download", "subset"},
        "stages/learning/split.py": {"subset", "compare"},
        "stages/learning/history.py": {"compare", "select"},
        "stages/reporting/summary.py": EVALUATIONS | {"compare"},
        "stages/reporting/tables.py": {"compare", "select"},
        "stages/reporting/figures.py": {"compare"},
    }


def test_an_edit_in_learning_makes_every_training_stale(project: Project) -> None:
    edit(project, "stages/learning/kernels.py")
    assert project.stale() == TRAININGS | EVALUATIONS


def test_an_edit_of_what_only_carries_makes_nothing_stale(project: Project) -> None:
    errors = project.folder / "stages/support/errors.py"
    text = errors.read_text(encoding="utf-8")
    errors.write_text(text.replace("out of memory;", "no memory left;"), encoding="utf-8")
    edit(project, "stages/__main__.py", "stages/support/params.py", "stages/support/tables.py")
    assert len(project.run("git", "status", "--porcelain").splitlines()) == 4
    assert UP_TO_DATE in project.run("dvc", "status")


def test_a_learning_rate_concerns_only_its_variant_and_going_back_nothing(
    project: Project,
) -> None:
    with project.params() as params:
        params["variants"]["sgd"]["lr"] = 1e-05  # which YAML 1.1 reads as a text
    assert project.stale() == {"train@sgd-0", "compare"}
    with project.params() as params:
        params["variants"]["sgd"]["lr"] = 0.01
        params["variants"]["adam"]["lr"] = 0.002  # the selected variant
    assert project.stale() == {"train@adam-0", "compare", "select"}
    project.run("git", "checkout", "--quiet", "params.yaml")
    assert project.stale() == set()


@pytest.mark.slow
def test_a_learning_rate_reruns_only_its_variant_and_going_back_trains_nothing(
    project: Project,
) -> None:
    before = project.digests()
    with project.params() as params:
        params["variants"]["adam"]["lr"] = 0.002
    assert set(project.repro()) == {"train@adam-0", "evaluate@adam", "compare", "select", "promote"}
    project.run("git", "checkout", "--quiet", "params.yaml")
    # DVC keeps no old results of a stage with an output that is in git, and no metric or plot.
    assert project.repro() == ["evaluate@adam", "select"]
    assert project.digests() == before


def test_a_changed_pin_makes_trainings_stale_and_params_diff_shows_it(project: Project) -> None:
    pyproject = project.folder / "pyproject.toml"
    text = pyproject.read_text(encoding="utf-8")
    assert '"torch==' in text
    pyproject.write_text(text.replace('"torch==', '"torch==9.'), encoding="utf-8")
    assert project.stale() == TRAININGS | EVALUATIONS
    diff = json.loads(project.run("dvc", "params", "diff", "--json"))
    pinned = diff["pyproject.toml"]["dependency-groups.pinned"]
    assert pinned["old"].replace("==", "==9.") == pinned["new"] != pinned["old"]


def test_a_seed_trains_only_itself(project: Project) -> None:
    with project.params() as params:
        params["seeds"] = [0, 1]
    new = {"train@sgd-1", "train@adam-1"}
    assert project.stale() == new | EVALUATIONS | {"compare"}


def test_a_variant_trains_only_itself_and_is_drawn_and_selected_like_the_others(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with project.params() as params:
        params["variants"]["sigmoid"] = params["variants"]["adam"] | {"activation": "sigmoid"}
    assert project.stale() == {"train@sigmoid-0", "evaluate@sigmoid", "compare"}
    for stage in ("train@adam-0", "evaluate@adam", "compare"):
        _, _, _, name, *arguments = project.command(stage)
        project.stage(name, *(argument.replace("adam", "sigmoid") for argument in arguments))
    plots = project.run("dvc", "plots", "show", "--json")
    for title in ("Test accuracy", "Train accuracy", "Test loss"):
        drawn = {point["variant"] for point in chart_points(plots, title)}
        assert drawn == {"sgd", "adam", "sigmoid"}, title
    monkeypatch.chdir(project.folder)
    with pytest.raises(InputError, match="not in git yet"):
        variants.main()


@pytest.mark.slow
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
            assert diff["metrics/selected.json"]["loss"][revision] == summary["loss"]
        params = json.loads(clone.run("dvc", "params", "diff", "sgd", "adam", "--json"))
        assert params["params.yaml"] == {"variant": {"old": "sgd", "new": "adam"}}
        compared = params["metrics/selected.yaml"]
        assert {key: (value["old"], value["new"]) for key, value in compared.items()} == {
            "optimizer": ("sgd", "adam"),
            "lr": (0.01, 0.001),
            "momentum": (0.9, None),
        }
        charts = clone.run("dvc", "plots", "diff", "sgd", "adam", "--json")
        points = chart_points(charts, "metrics/selected.csv")
        drawn = {(point["rev"], point["variant"]) for point in points}
        assert drawn == {("sgd", "sgd"), ("adam", "adam")}
        # Experiments of this commit must not stand in the way after the next one.
        clone.run("git", "commit", "--quiet", "--allow-empty", "--message", "another commit")


@pytest.mark.slow
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
    with pytest.raises(InputError, match="not of one training"):
        stage_again(project, "evaluate@sgd")
    found = "is of variant sgd and seed 0, params.yaml selects adam and 0"
    with pytest.raises(InputError, match=found):
        stage_again(project, "promote")


def test_curves_of_another_run_stop_compare(project: Project) -> None:
    curves = project.folder / "metrics/curves/adam.csv"
    rewrite(curves, "".join(curves.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=r"metrics/curves/adam\.csv: other seeds .* other epochs"):
        stage_again(project, "compare")


def test_curves_of_another_variant_stop_select(project: Project) -> None:
    with project.params() as params:
        params["variant"] = "sgd"
    with pytest.raises(InputError, match=r"is of variant adam, params\.yaml selects sgd"):
        stage_again(project, "select")


def test_an_accuracy_above_one_stops_evaluate(project: Project) -> None:
    history = project.folder / "metrics/history/adam/0.csv"
    names, first, *others = history.read_text(encoding="utf-8").splitlines()
    values = first.split(",")
    values[names.split(",").index("test_accuracy")] = "1.5"
    rewrite(history, "\n".join([names, ",".join(values), *others, ""]))
    with pytest.raises(InputError, match=r"0\.csv.* has a test accuracy that is not between"):
        stage_again(project, "evaluate@adam")


def test_variants_of_machines_with_different_precisions_are_not_compared(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = choose_precision("auto", torch.device("cpu"))
    there = "fp32" if here == "bf16" else "bf16"
    with monkeypatch.context() as patch:
        # The other kind of machine: one that multiplies bfloat16, or one that does not.
        patch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": there == "bf16"})
        stage_again(project, "train@sgd-0")
        stage_again(project, "evaluate@sgd")
    found = f"sgd with seed 0 in {there}, adam with seed 0 in {here}"
    with pytest.raises(InputError, match=f"metrics/curves: {found}: machines differ in what"):
        stage_again(project, "compare")
    with project.params() as params:
        params["train"]["precision"] = there
    assert project.stale() >= TRAININGS


def test_metrics_show_fits_a_terminal_and_has_the_same_columns_for_all(project: Project) -> None:
    names = ("sigmoid-without-drop", "sgd-slow-but-steady_")
    assert [len(name) for name in names] == [20, 20]
    with project.params() as params:
        params["variants"] = dict(zip(names, params["variants"].values(), strict=True))
        params["variant"] = names[0]
    third = 1 / 3
    wide = Summary(
        accuracy=third,
        loss=1234 + third,
        best=third,
        best_epoch=10 + third,
        falls=third,
        train=third,
    )
    for path in (*(f"summary/{name}" for name in names), "selected"):
        write_json(project.folder / f"metrics/{path}.json", wide.model_dump())
    header, *lines = project.run("dvc", "metrics", "show").splitlines()
    assert header.split() == ["Path", *sorted(Summary.model_fields)]
    assert sorted(line.split()[0] for line in lines) == [
        "metrics/selected.json",
        *sorted(f"metrics/summary/{name}.json" for name in names),
    ]
    assert all("-" not in line.split()[1:] for line in lines)
    assert 100 < max(map(len, lines)) <= 120


def lines_of_progress(project: Project, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what `make progress` prints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.folder)
        progress.main()
    return capsys.readouterr().out.splitlines()


def test_progress_is_told_while_it_grows(
    finished: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    *lines, widest = lines_of_progress(finished, capsys)
    # The most that Wilson's interval reaches, at one half; of 12 images.
    half = 1.959964 / (2 * math.sqrt(12 + 1.959964**2))
    assert widest.startswith(f"± {half:.4f} at most: ")
    assert [line.split()[:5] for line in lines] == [
        ["sgd", "seed", "0", "2", "of"],
        ["adam", "seed", "0", "2", "of"],
    ]
    history = (finished.folder / "metrics/history/adam/0.csv").read_text(encoding="utf-8")
    rows = history.splitlines()
    column = rows[0].split(",").index("test_accuracy")
    accuracies = [f"{float(row.split(',')[column]):.4f}" for row in rows[1:]]
    assert lines[1].split()[-2:] == accuracies


def test_progress_of_none_and_of_no_checkpoint(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    # A new training has neither a checkpoint nor a history.
    for result in ("sgd/0.safetensors", "../metrics/history/sgd/0.csv"):
        (project.folder / ".checkpoints" / result).unlink()
    assert "seed 0   0 of 2 epochs" in "\n".join(lines_of_progress(project, capsys))
    (project.folder / ".checkpoints/sgd/0.safetensors").write_text("none", encoding="utf-8")
    with pytest.raises(InputError, match="is not a checkpoint"):
        lines_of_progress(project, capsys)


def test_progress_knows_what_is_finished_although_no_checkpoint_is_there(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    with_checkpoints = lines_of_progress(project, capsys)
    shutil.rmtree(project.folder / ".checkpoints")
    assert lines_of_progress(project, capsys) == with_checkpoints
    with project.params() as params:
        params["variants"]["sgd"]["lr"] = 0.5
    assert "seed 0   0 of 2 epochs" in lines_of_progress(project, capsys)[0]


def test_progress_names_a_damaged_subset(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(project.folder / "data/subset/test.safetensors", "no tensors")
    with pytest.raises(InputError, match=r"^data/subset/test\.safetensors"):
        lines_of_progress(project, capsys)
