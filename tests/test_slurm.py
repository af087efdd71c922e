"""The profile of profiles/slurm on a real Slurm of two nodes that this machine plays."""

import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests import slurm
from tests.commands import Command, started
from tests.conftest import UP_TO_DATE, Project
from tests.test_parallel import STAGES

# A cluster with accounting needs none of these. The plugin's patience is meant for a busy one.
OPTIONS = (
    *("--latency-wait", "5", "--slurm-no-account", "--slurm-status-command", "squeue"),
    *("--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2"),
)
SNAKEMAKE = ("snakemake", "--profile", "profiles/slurm", *OPTIONS)
SGD, ADAM = "train@sgd-0", "train@adam-0"
# The stages of seconds share two jobs, which Slurm's comments name so.
DATA, RESULTS = "rule_data_download_subset", "rule_results_compare_evaluate_promote_select"
# A training of a tiny network can be met at work if its third checkpoint waits for a file to go.
GATE = """
import os, sys, time

fsync, calls = os.fsync, 0

def when_open(file):
    global calls
    calls += 1
    while calls > 4 and os.path.exists({gate!r}):  # two calls for each checkpoint
        time.sleep(0.1)
    fsync(file)

if sys.orig_argv[1:4] == ["-m", "stages", "train"]:
    os.fsync = when_open
"""
EPOCHS = 6
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(slurm.unavailable()), reason=slurm.unavailable()),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SLURM_CONF", raising=False)  # which would name another cluster
        with slurm.running(tmp_path_factory.mktemp("slurm")) as cluster:
            yield cluster


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file that must go before any training saves its third epoch."""
    (tmp_path / "gate").touch()
    text = GATE.format(gate=str(tmp_path / "gate"))
    (tmp_path / "sitecustomize.py").write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "gate"


def jobs(cluster: slurm.Cluster, state: str = "all") -> dict[str, dict[str, str]]:
    """Return what Slurm tells of the newest job of each stage, or group of stages."""
    listed = cluster.ask("squeue", "--noheader", f"--states={state}", "--format=%A")
    found = {}
    for number in sorted(listed.split(), key=int):
        told = dict(re.findall(r"(\w+)=(\S+)", cluster.ask("scontrol", "show", "job", number)))
        found[told.get("Comment", "").rpartition("_wildcards_")[2]] = told
    return found


def has_saved(command: Command, project: Project, variant: str) -> bool:
    """Return whether a training has saved an epoch; what runs it must not have ended before."""
    assert command.process.poll() is None, command.process.communicate()[0]
    return (project.folder / f".checkpoints/{variant}/0.safetensors").exists()


def test_a_node_dies_and_its_training_goes_on_from_its_checkpoint_on_the_other(
    cluster: slurm.Cluster,
    new_project: Callable[[], Project],
    gate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = new_project()
    with project.params() as params:
        params["train"]["epochs"] = EPOCHS
    with started(project, *SNAKEMAKE, "--slurm-keep-successful-logs") as command:
        for variant in ("sgd", "adam"):
            slurm.wait_until(partial(has_saved, command, project, variant))
        running = jobs(cluster, "RUNNING")
        assert {running[name]["NodeList"] for name in (SGD, ADAM)} == set(slurm.NODES)
        died = running[SGD]["NodeList"]
        cluster.kill(died)
        gate.unlink()
        slurm.wait_until(lambda: jobs(cluster)[SGD]["JobState"] == "PENDING")
        # Slurm would wait two minutes.
        cluster.ask("scontrol", "update", f"JobId={running[SGD]['JobId']}", "StartTime=now")
        slurm.wait_until(lambda: jobs(cluster)[SGD]["JobState"] != "PENDING")
        cluster.start_node(died)
        assert command.end() == 0, command.output

    ended = jobs(cluster)
    assert set(ended) == {DATA, SGD, ADAM, RESULTS}
    assert set(project.lock()["stages"]) == STAGES
    assert {job["JobState"] for job in ended.values()} == {"COMPLETED"}
    assert ended[SGD]["Restarts"] == "1" and ended[SGD]["NodeList"] != died
    (log,) = (project.folder / f".snakemake/slurm_logs/rule_train/{SGD}").iterdir()
    (after,) = re.findall(r"goes on after epoch (\d+)$", log.read_text(), re.MULTILINE)
    assert 1 <= int(after) < EPOCHS
    assert UP_TO_DATE in project.run("dvc", "status")

    disturbed = project.digests()
    shutil.rmtree(project.folder / ".checkpoints")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # as in profiles/slurm
    assert "starts with epoch 1" in project.run(*project.command(SGD))
    assert project.digests() == disturbed


def test_a_cancelled_job_and_a_failed_stage_are_named_and_the_next_run_goes_on(
    cluster: slurm.Cluster, project: Project, gate: Path
) -> None:
    with project.params() as params:
        params["train"]["epochs"] = EPOCHS
        for variant in params["variants"].values():
            variant["lr"] /= 2
    shutil.rmtree(project.folder / ".checkpoints")
    broken = project.folder / ".checkpoints/sgd"
    broken.parent.mkdir()
    broken.touch()
    before = jobs(cluster)
    with started(project, *SNAKEMAKE) as command:
        slurm.wait_until(partial(has_saved, command, project, "adam"))
        number = jobs(cluster, "RUNNING")[ADAM]["JobId"]
        cluster.ask("scancel", number)
        gate.unlink()
        assert command.end() == 1, command.output
    assert f"'{number}' failed, SLURM status is: 'CANCELLED'" in command.output
    assert f"{SGD}: error: [Errno 20] Not a directory" in command.output
    after = jobs(cluster)
    ran = {name for name in after if after[name]["JobId"] != before.get(name, {}).get("JobId")}
    assert ran == {DATA, SGD, ADAM}

    broken.unlink()
    (project.folder / ".dvc/tmp/rwlock").write_text("")  # as a job that is killed may leave it
    printed = project.run(*SNAKEMAKE, f".snakemake/done/{ADAM}")
    assert "3 of 3 steps (100%) done" in printed
    log = project.folder / f".snakemake/stages/{ADAM}.log"
    assert "goes on after epoch" in log.read_text(encoding="utf-8")


def submit(project: Project, script: str, *arguments: str) -> str:
    """Submit a script of profiles/slurm, with the resources of the tests' nodes; return its job."""
    resources = f"--cpus-per-task={1 if script == 'controller' else 2}", "--mem=2G"
    command = ("sbatch", "--parsable", *resources, f"profiles/slurm/{script}.sbatch", *arguments)
    return project.run(*command).strip()


def state(cluster: slurm.Cluster, job: str) -> str:
    return cluster.ask(
        "squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T"
    ).strip()


def test_the_whole_pipeline_runs_in_one_job(
    cluster: slurm.Cluster, new_project: Callable[[], Project], finished: Project
) -> None:
    project = new_project()
    job = submit(project, "one_job")
    slurm.wait_until(lambda: state(cluster, job) not in ("PENDING", "RUNNING", "COMPLETING"))
    log = (project.folder / f"pipeline-{job}.log").read_text(encoding="utf-8")
    assert state(cluster, job) == "COMPLETED", log
    assert UP_TO_DATE in project.run("dvc", "status")
    assert project.digests() == finished.digests()


def test_a_controller_whose_node_dies_begins_anew_and_no_stage_runs_twice_at_once(
    cluster: slurm.Cluster, new_project: Callable[[], Project], gate: Path
) -> None:
    project = new_project()
    with project.params() as params:
        params["train"]["epochs"] = EPOCHS
    job = submit(project, "controller", *OPTIONS, "--set-threads", "train=1", "evaluate=1")
    checkpoints = [project.folder / f".checkpoints/{v}/0.safetensors" for v in ("sgd", "adam")]
    slurm.wait_until(lambda: all(path.exists() for path in checkpoints))
    before = jobs(cluster, "RUNNING")
    (node,) = re.findall(r"NodeList=(n\d)", cluster.ask("scontrol", "show", "job", job))
    cluster.kill(node)
    gate.unlink()
    slurm.wait_until(lambda: state(cluster, job) == "PENDING")
    cluster.ask("scontrol", "update", f"JobId={job}", "StartTime=now")  # Slurm would wait minutes.
    slurm.wait_until(lambda: state(cluster, job) != "PENDING")
    cluster.start_node(node)
    slurm.wait_until(lambda: state(cluster, job) not in ("PENDING", "RUNNING", "COMPLETING"))
    log = (project.folder / f"pipeline-{job}.log").read_text(encoding="utf-8")
    assert state(cluster, job) == "COMPLETED", log
    assert UP_TO_DATE in project.run("dvc", "status")
    # The training of the dead node was cancelled in the queue. The other may have ended before.
    cancelled = [n for n in (SGD, ADAM) if state(cluster, before[n]["JobId"]) == "CANCELLED"]
    assert cancelled
    for name in cancelled:
        stage_log = project.folder / f".snakemake/stages/{name}.log"
        assert "goes on after epoch" in stage_log.read_text(encoding="utf-8")
    assert {jobs(cluster)[name]["JobState"] for name in (SGD, ADAM)} == {"COMPLETED"}
