"""`make parallel`: Snakemake side by side runs what DVC alone runs one by one."""

import csv
import os
import re
import signal
from collections.abc import Callable

import pytest
import yaml

from tests.commands import started
from tests.conftest import UP_TO_DATE, Project, stages_run

STAGES = {
    *("download", "subset", "train@sgd-0", "train@adam-0", "evaluate@sgd", "evaluate@adam"),
    *("compare", "select", "promote"),
}
# As many at a time as there are processors, so that a training has one thread, as in `finished`.
JOBS = max(2, len(os.sched_getaffinity(0)))
# The environment that make would build is the one that runs this test.
ASSUMED = ("--assume-old=.venv/.stamp", "--assume-old=.venv/.stamp-all")
PARALLEL = ("make", *ASSUMED, "parallel", f"JOBS={JOBS}")


@pytest.mark.slow
def test_several_stages_at_a_time_make_the_bytes_of_one_and_leave_nothing_to_do(
    new_project: Callable[[], Project], finished: Project
) -> None:
    project = new_project()
    printed = project.run(*PARALLEL)
    assert set(stages_run(printed)) == STAGES
    marks = re.findall(r"^(?:local)?rule train:|: Epoch \[2/2\]", printed, re.MULTILINE)
    assert ["train" in mark for mark in marks[:2]] == [True, True], "the trainings did not overlap"

    assert project.digests() == finished.digests()
    with (project.folder / "metrics/timing/sgd/0.csv").open(encoding="utf-8") as file:
        assert {row["threads"] for row in csv.DictReader(file)} == {"1"}
    assert set(project.lock()["stages"]) == set(finished.lock()["stages"]) == STAGES

    project.commit()
    assert UP_TO_DATE in project.run("dvc", "status")
    assert UP_TO_DATE in project.run("dvc", "repro")
    assert stages_run(project.run(*PARALLEL)) == []
    assert project.run("git", "status", "--porcelain") == ""


@pytest.mark.slow
def test_no_more_stages_run_at_a_time_than_there_are_cores(project: Project) -> None:
    with project.params() as params:
        for variant in params["variants"].values():
            variant["lr"] *= 2
    trainings = [f".snakemake/done/train@{variant}-0" for variant in ("sgd", "adam")]
    # Snakemake 9.15 gave the core of a stage that had nothing beside it, as subset, back twice.
    printed = project.run("snakemake", "--cores", "1", *trainings)
    marks = re.findall(r"^train@(.+)-0: (Running stage|Epoch \[2/2\])", printed, re.MULTILINE)
    (first, begun), (same, ended), (second, _), *_ = marks
    assert (begun, ended) == ("Running stage", "Epoch [2/2]")
    assert first == same != second


@pytest.mark.slow
def test_a_job_takes_the_graph_from_the_run_that_started_it(project: Project) -> None:
    needs = project.folder / ".snakemake/needs.json"
    needs.parent.mkdir()
    needs.write_text('{"select": []}', encoding="utf-8")
    command = ("snakemake", "--cores", "1", "--dry-run", ".snakemake/done/train@sgd-0")
    assert "MissingRuleException" in project.run(*command, "--mode", "remote", fails=True)
    assert "rule train:" in project.run(*command)  # DVC's graph


@pytest.mark.slow
def test_a_failed_stage_is_named_and_stops_only_those_that_need_it(project: Project) -> None:
    with project.params() as params:
        for variant in params["variants"].values():
            variant["lr"] *= 2
    checkpoints = project.folder / ".checkpoints/sgd"
    checkpoints.rename(checkpoints.with_name("kept"))
    checkpoints.touch()
    printed = project.run("snakemake", "--cores", "2", fails=True)
    assert "train@sgd-0: error: [Errno 20] Not a directory: '.checkpoints/sgd" in printed
    assert "ERROR: failed to reproduce 'train@sgd-0'" in printed
    assert "Error in rule train:" in printed
    assert sorted(stages_run(printed)) == [
        *("evaluate@adam", "promote", "select", "train@adam-0", "train@sgd-0"),
    ]
    checkpoints.unlink()
    assert sorted(stages_run(project.run("snakemake", "--cores", "2"))) == [
        *("compare", "evaluate@sgd", "train@sgd-0"),
    ]
    assert UP_TO_DATE in project.run("dvc", "status")


@pytest.mark.slow
def test_interrupted_it_ends_and_the_next_run_goes_on(project: Project) -> None:
    with project.params() as params:
        params["train"]["epochs"] = 4000
    with started(project, "snakemake", "--cores", "1") as command:
        command.until("-0: Epoch [4/4000]")
        os.killpg(command.process.pid, signal.SIGINT)
        assert command.end() != 0
        assert "`dvc repro` goes on" in command.output
    with started(project, "snakemake", "--cores", "1") as command:
        command.until("goes on after epoch ")
        os.killpg(command.process.pid, signal.SIGINT)
        command.end()


def test_every_stage_of_dvc_yaml_is_planned(project: Project) -> None:
    graph = yaml.safe_load((project.folder / "dvc.yaml").read_text(encoding="utf-8"))
    graph["stages"]["count"] = {"cmd": "wc metrics/curves.csv", "deps": ["metrics/curves.csv"]}
    (project.folder / "dvc.yaml").write_text(yaml.safe_dump(graph, sort_keys=False), "utf-8")
    printed = project.run("snakemake", "--cores", "2", "--dry-run")
    assert set(re.findall(r"wildcards: stage=(\S+)", printed)) == STAGES | {"count"}


@pytest.mark.parametrize("jobs", ["0", "many", "-1"])
def test_a_number_of_jobs_that_is_none_is_refused(project: Project, jobs: str) -> None:
    page = "--assume-old=.dvc/plots/page.html"
    printed = project.run(*PARALLEL[:-1], page, f"JOBS={jobs}", fails=True)
    assert f"JOBS is a number, 1 or more: not {jobs}" in printed


@pytest.mark.slow
def test_a_graph_that_dvc_cannot_read_is_told_in_its_words(project: Project) -> None:
    (project.folder / "dvc.yaml").write_text("stages: [", encoding="utf-8")
    printed = project.run("snakemake", "--cores", "2", fails=True)
    assert "unable to read: 'dvc.yaml', YAML file structure is corrupted" in printed
