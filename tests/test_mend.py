"""`python -m tools.mend`: what `make repro` and the Snakefile repair before they ask DVC."""

import json
import os
import subprocess

import pytest

from tests.conftest import UP_TO_DATE, Project, stages_run
from tools.page import PAGE

MEND = ("python", "-m", "tools.mend")
SNAKEMAKE = ("snakemake", "--cores", "2", "--dry-run")
# The environment and the page that make would build are not what these tests are about.
MAKE_REPRO = ("make", *(f"--assume-old={name}" for name in (".venv/.stamp", PAGE)), "repro")
TABLE = ".dvc/tmp/rwlock"


def assert_nothing_trains(project: Project) -> None:
    """Run `dvc repro`. DVC's cache does not keep every stage's outputs, but it keeps the models."""
    again = {stage.partition("@")[0] for stage in project.repro()}
    assert again <= {"evaluate", "compare", "select"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "kept", "hardlink"),
    [(MEND, 0, "false"), (MEND, 1, "true"), (SNAKEMAKE, -1, "false"), (MAKE_REPRO, 0, "false")],
)
def test_a_table_that_a_kill_cut_short_is_removed(
    project: Project, command: tuple[str, ...], kept: int, hardlink: str
) -> None:
    project.run("dvc", "config", "core.hardlink_lock", hardlink)
    table = project.folder / TABLE
    for lock in table.parent.glob("*lock"):  # The other kind of lock leaves them.
        lock.unlink()
    content = json.dumps({"read": {"params.yaml": [{"pid": os.getpid(), "cmd": "dvc repro"}]}})
    table.write_text(content[:kept], encoding="utf-8")
    assert TABLE in project.run("dvc", "repro", fails=True)
    assert "removed .dvc/tmp/rwlock, which had been cut short" in project.run(*command)
    assert UP_TO_DATE in project.run("dvc", "repro")


def test_a_killed_process_that_nobody_has_waited_for_blocks_no_stage(project: Project) -> None:
    select = ("dvc", "repro", "--force", "--single-item", "select")
    with subprocess.Popen(["true"]) as killed:
        os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
        writer = {"pid": killed.pid, "cmd": "dvc repro"}
        output = str(project.folder / "metrics/selected.json")
        content = {"read": {output: [writer]}, "write": {output: writer}}
        (project.folder / TABLE).write_text(json.dumps(content), encoding="utf-8")
        assert "is busy, it is being blocked by" in project.run(*select, fails=True)
        assert "removed killed processes" in project.run(*MEND)
        assert stages_run(project.run(*select)) == ["select"]


@pytest.mark.parametrize(
    "content", [{}, {"read": {}, "write": {"a": {"pid": os.getpid(), "cmd": "dvc repro"}}}]
)
def test_whole_files_stay(project: Project, content: dict[str, object]) -> None:
    table, lock = project.folder / TABLE, project.folder / "dvc.lock"
    table.write_text(json.dumps(content), encoding="utf-8")
    before = table.read_bytes(), lock.read_bytes()
    assert project.run(*MEND) == ""
    assert (table.read_bytes(), lock.read_bytes()) == before


@pytest.mark.slow
@pytest.mark.parametrize(("kept", "committed"), [(0, True), (9, False), (-7, True)])
def test_a_lock_that_a_kill_cut_short_costs_no_training(
    project: Project, kept: int, committed: bool
) -> None:
    before, recorded = project.digests(), project.lock()
    lock = project.folder / "dvc.lock"
    if not committed:
        project.run("git", "rm", "--quiet", "--cached", "dvc.lock")
        project.run("git", "commit", "--quiet", "--message", "without a lock")
    lock.write_bytes(lock.read_bytes()[:kept])
    assert "dvc.lock" in project.run("dvc", "repro", fails=True)
    told = "is as committed again" if committed else "removed dvc.lock"
    assert told in project.run(*MEND)
    assert_nothing_trains(project)
    assert project.digests() == before
    assert project.lock() == recorded


@pytest.mark.slow
def test_a_cut_between_two_stages_of_the_lock_costs_no_training_either(project: Project) -> None:
    before, recorded = project.digests(), project.lock()
    lock = project.folder / "dvc.lock"
    lines = lock.read_text(encoding="utf-8").splitlines(keepends=True)
    lock.write_text("".join(lines[: len(lines) // 3]), encoding="utf-8")  # which DVC can read
    assert_nothing_trains(project)
    assert project.digests() == before
    assert project.lock() == recorded


@pytest.mark.parametrize("command", [MAKE_REPRO, SNAKEMAKE])
def test_wrong_parameters_are_told_before_dvc_removes_a_result(
    project: Project, command: tuple[str, ...]
) -> None:
    before = project.digests()
    with project.params() as params:
        params["variants"][7] = params["variants"]["adam"]
        params["epochs"] = 20
    printed = project.run(*command, fails=True)
    assert "params.yaml: unknown key epochs (20)" in printed
    assert project.digests() == before


@pytest.mark.slow
def test_a_merge_conflict_in_the_lock_is_resolved_by_what_the_message_says(
    project: Project,
) -> None:
    for branch, variant in (("theirs", "sgd"), ("main", "adam")):
        project.run("git", "checkout", "--quiet", *(["-b"] if branch != "main" else []), branch)
        with project.params() as params:
            params["variants"][variant]["lr"] /= 2
        for stage in (f"train@{variant}-0", f"evaluate@{variant}", "compare", "select", "promote"):
            project.stage_again(stage)
        project.run("dvc", "commit", "--force")
        project.commit()
    merged = project.run("git", "merge", "theirs", fails=True)
    assert "CONFLICT (content): Merge conflict in dvc.lock" in merged
    conflict = (project.folder / "dvc.lock").read_bytes()
    for command in (MEND, SNAKEMAKE):
        printed = project.run(*command, fails=True)
        assert "dvc.lock has a merge conflict" in printed
        assert (project.folder / "dvc.lock").read_bytes() == conflict
    remedy = next(line for line in printed.splitlines() if line.startswith("  git checkout"))
    project.run(*remedy.split())
    assert_nothing_trains(project)
    assert UP_TO_DATE in project.run("dvc", "status")
    project.commit()
    with project.params() as params:
        lrs = {name: variant["lr"] for name, variant in params["variants"].items()}
    assert lrs == {"sgd": 0.005, "adam": 0.0005}
