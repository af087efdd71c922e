"""dvc.yaml as it stands, read by dvc as it is: what reruns, what is the same, what stops."""

import io
import json
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.numpy import save_file

from stages.learning.device import CPU_BF16, choose_precision
from stages.learning.history import EpochRow
from stages.reporting import figures
from stages.reporting.summary import Summary
from stages.support.atomic import write_json
from stages.support.errors import InputError
from stages.support.tables import read_table
from tests.conftest import UP_TO_DATE, Project, stages_run
from tools import progress, variants

TRAININGS = {"train@sgd-0", "train@adam-0"}
EVALUATIONS = {"evaluate@sgd", "evaluate@adam"}


def chart_points(plots: str, title: str) -> list[dict[str, str]]:
    """Return the data points of a chart that `dvc plots ... --json` printed."""
    (chart,) = json.loads(plots)["data"][title]
    points: list[dict[str, str]] = chart["content"]["data"]["values"]
    return points


def rewrite(path: Path, content: str) -> None:
    """Replace a result, which may be a link into DVC's cache."""
    path.unlink()
    path.write_text(content, encoding="utf-8")


def test_a_second_run_does_nothing_and_nothing_temporary_is_left(project: Project) -> None:
    assert UP_TO_DATE in project.run("dvc", "repro")
    assert project.run("git", "status", "--porcelain") == ""
    assert not [*project.folder.glob("m*s/**/*.tmp"), *project.folder.glob("data/**/*.tmp")]


def test_running_from_scratch_gives_the_same_bytes(
    finished: Project, new_project: Callable[[], Project]
) -> None:
    again = new_project()
    for stage in finished.lock()["stages"]:
        _, _, _, name, *arguments = finished.command(stage)
        again.stage(name, *arguments)
    assert again.digests() == finished.digests()


def test_an_edit_makes_exactly_the_stages_stale_that_the_room_says(project: Project) -> None:
    for module in project.folder.glob("stages/**/*.py"):  # of stages/support too
        module.write_text(f"{module.read_text(encoding='utf-8')}# edited\n", encoding="utf-8")
    (project.folder / "stages/learning/schedule.py").touch()
    readers: dict[str, set[str]] = defaultdict(set)
    for stage, reasons in json.loads(project.run("dvc", "status", "--json")).items():
        for reason in reasons:
            for path in reason.get("changed deps", {}):
                readers[path].add(stage)
    assert readers == {
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


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        (
            lambda params: params["variants"]["sgd"].update(lr=1e-05),  # a text to YAML 1.1
            {"train@sgd-0", "compare"},
        ),
        (
            lambda params: params["seeds"].append(1),
            {"train@sgd-1", "train@adam-1", "compare"} | EVALUATIONS,
        ),
    ],
    ids=["a learning rate", "a seed"],
)
def test_a_parameter_concerns_its_trainings_alone_and_going_back_none(
    change: Callable[[dict[str, Any]], None], stale: set[str], project: Project
) -> None:
    with project.params() as params:
        change(params)
    assert project.stale() == stale
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


def test_a_variant_trains_only_itself_and_is_drawn_and_selected_like_the_others(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    with project.params() as params:
        params["variants"]["sigmoid"] = params["variants"]["adam"] | {"activation": "sigmoid"}
    assert project.stale() == {"train@sigmoid-0", "evaluate@sigmoid", "compare"}
    for stage in ("train@adam-0", "evaluate@adam", "compare"):
        project.stage_again(stage, variant="sigmoid")
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
        "selected.optimizer": ("sgd", "adam"),
        "selected.lr": (0.01, 0.001),
        "selected.momentum": (0.9, None),
    }
    charts = clone.run("dvc", "plots", "diff", "sgd", "adam", "--json")
    points = chart_points(charts, "metrics/selected.csv")
    drawn = {(point["rev"], point["variant"]) for point in points}
    assert drawn == {("sgd", "sgd"), ("adam", "adam")}


def test_a_plain_clone_needs_no_stage(finished: Project, tmp_path: Path) -> None:
    clone = finished.clone(tmp_path / "clone")
    assert stages_run(clone.run("dvc", "repro", "--allow-missing", "--dry")) == []


def test_swapped_weights_stop_evaluate_and_promote(project: Project) -> None:
    sgd, adam = (project.folder / f"models/{variant}/0.safetensors" for variant in ("sgd", "adam"))
    kept = sgd.rename(sgd.with_suffix(".kept"))
    adam.rename(sgd)
    kept.rename(adam)
    with pytest.raises(InputError, match="not of one training"):
        project.stage_again("evaluate@sgd")
    found = "is of variant sgd and seed 0, params.yaml selects adam and 0"
    with pytest.raises(InputError, match=found):
        project.stage_again("promote")


def test_curves_of_another_run_stop_compare(project: Project) -> None:
    curves = project.folder / "metrics/curves/adam.csv"
    rewrite(curves, "".join(curves.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match=r"metrics/curves/adam\.csv: other seeds .* other epochs"):
        project.stage_again("compare")


def test_curves_of_another_variant_stop_select(project: Project) -> None:
    with project.params() as params:
        params["variant"] = "sgd"
    with pytest.raises(InputError, match=r"is of variant adam, params\.yaml selects sgd"):
        project.stage_again("select")


def test_an_accuracy_above_one_stops_evaluate(project: Project) -> None:
    history = project.folder / "metrics/history/adam/0.csv"
    names, first, *others = history.read_text(encoding="utf-8").splitlines()
    values = first.split(",")
    values[names.split(",").index("test_accuracy")] = "1.5"
    rewrite(history, "\n".join([names, ",".join(values), *others, ""]))
    with pytest.raises(InputError, match=r"0\.csv.* has a test accuracy that is not between"):
        project.stage_again("evaluate@adam")


def test_variants_of_machines_with_different_precisions_are_not_compared(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = choose_precision("auto", torch.device("cpu"))
    there = "fp32" if here == "bf16" else "bf16"
    with monkeypatch.context() as patch:
        # The other kind of machine: one that multiplies bfloat16, or one that does not.
        other = {**torch.cpu.get_capabilities(), **dict.fromkeys(CPU_BF16, there == "bf16")}
        patch.setattr(torch.cpu, "get_capabilities", lambda: other)
        project.stage_again("train@sgd-0")
        project.stage_again("evaluate@sgd")
    found = f"sgd with seed 0 in {there}, adam with seed 0 in {here}"
    with pytest.raises(InputError, match=f"metrics/curves: {found}: machines differ in what"):
        project.stage_again("compare")
    with project.params() as params:
        params["train"]["precision"] = there
    assert project.stale() >= TRAININGS


def test_metrics_show_fits_a_terminal_though_names_and_numbers_are_long(project: Project) -> None:
    names = ("sigmoid-without-drop", "sgd-slow-but-steady_")  # 20 letters
    with project.params() as params:
        params["variants"] = dict(zip(names, params["variants"].values(), strict=True))
        params["variant"] = names[0]
    keys = sorted(Summary.model_fields)
    for path in (*(f"summary/{name}" for name in names), "selected"):
        write_json(project.folder / f"metrics/{path}.json", dict.fromkeys(keys, 1000 + 1 / 3))
    header, *lines = project.run("dvc", "metrics", "show").splitlines()
    assert header.split() == ["Path", *keys]
    assert len(lines) == 3
    assert 100 < max(map(len, lines)) <= 120


def lines_of_progress(project: Project) -> list[str]:
    """Return what `make progress` prints."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.chdir(project.folder)
        progress.main()
    return printed.getvalue().splitlines()


def test_progress_tells_epochs_and_accuracies_from_checkpoints_or_from_results(
    project: Project,
) -> None:
    rows = read_table(project.folder / "metrics/history/adam/0.csv", EpochRow)
    accuracies = [f"{row.test_accuracy:.4f}" for row in rows]
    lines = lines_of_progress(project)
    assert lines[0].split()[:6] == ["sgd", "seed", "0", "2", "of", "2"]
    assert lines[1].split() == ["adam", "seed", "0", "2", "of", "2", "epochs", *accuracies]
    # The most that Wilson's interval reaches, at one half; of 12 images.
    half = 1.959964 / (2 * math.sqrt(12 + 1.959964**2))
    assert lines[2].startswith(f"± {half:.4f} at most: ")
    checkpoints = project.folder / ".checkpoints"
    shutil.rmtree(checkpoints)
    assert lines_of_progress(project) == lines
    with project.params() as params:
        params["variants"]["sgd"]["lr"] = 0.5  # results of another training are none of this one
    assert lines_of_progress(project)[0].endswith("seed 0   0 of 2 epochs")
    (project.folder / "metrics/history/adam/0.csv").unlink()
    assert lines_of_progress(project)[1].endswith("seed 0   0 of 2 epochs")
    assert lines_of_progress(project)[2].startswith("nothing is trained in this checkout yet")


@pytest.mark.parametrize("name", [".checkpoints/sgd/0.safetensors", "data/subset/test.safetensors"])
def test_progress_names_a_damaged_file(name: str, project: Project) -> None:
    rewrite(project.folder / name, "no tensors")
    with pytest.raises(InputError, match=f"^{re.escape(name)}"):
        lines_of_progress(project)


def test_progress_names_a_file_of_tensors_that_is_not_ours(project: Project) -> None:
    path = project.folder / ".checkpoints/sgd/0.safetensors"
    save_file({"a": np.zeros(1)}, path, {"description": "[1, 2]"})
    with pytest.raises(InputError, match=r"sgd/0\.safetensors is not a checkpoint or weights"):
        lines_of_progress(project)


def test_one_epoch_is_one_tick() -> None:
    axes = Figure().subplots()
    axes.plot([1], [0.5])
    figures._label_accuracy(axes, "")
    start, end = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if start <= tick <= end] == [1]
