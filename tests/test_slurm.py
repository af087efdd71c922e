"""The profile of profiles/slurm on a real Slurm of two nodes that this machine plays."""

import re
import time
from collections.abc import Callable, Iterator

import pytest

from tests import slurm
from tests.conftest import Project
from tests.test_interruption import Command, started
from tests.test_parallel import STAGES
from tests.test_pipeline import UP_TO_DATE

# What a cluster with accounting needs none of; and the plugin's patience is meant for a busy one.
SNAKEMAKE = (
    *("snakemake", "--profile", "profiles/slurm", "--latency-wait", "5"),
    *("--slurm-no-account", "--slurm-status-command", "squeue"),
    *("--slurm-init-seconds-before-status-checks", "2", "--seconds-between-status-checks", "2"),
)
SGD, ADAM = "train@sgd-0", "train@adam-0"
pytestmark = pytest.mark.skipif(bool(slurm.unavailable()), reason=slurm.unavailable())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    with slurm.running(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


def jobs(cluster: slurm.Cluster, state: str = "all") -> dict[str, dict[str, str]]:
    """Return what Slurm tells of the newest job of each stage."""
    listed = cluster.ask("squeue", "--noheader", f"--states={state}", "--format=%A")
    found = {}
    for number in sorted(listed.split(), key=int):
        told = dict(re.findall(r"(\w+)=(\S+)", cluster.ask("scontrol", "show", "job", number)))
        found[told["Comment"].rpartition("_wildcards_")[2]] = told
    return found


def wait_for_epoch(command: Command, project: Project, variant: str) -> None:
    """Wait until a training has saved its first epoch."""
    while not (project.folder / f".checkpoints/{variant}/0.safetensors").exists():
        assert command.process.poll() is None, command.process.communicate()[0]
        time.sleep(0.05)


def test_a_node_dies_and_its_training_goes_on_from_its_checkpoint_on_the_other(
    cluster: slurm.Cluster, new_project: Callable[[], Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, undisturbed = new_project(), new_project()
    for one in (project, undisturbed):
        with one.params() as params:
            params["train"]["epochs"] = 15
    with started(project, *SNAKEMAKE, "--slurm-keep-successful-logs") as command:
        for variant in ("sgd", "adam"):
            wait_for_epoch(command, project, variant)
        running = jobs(cluster, "RUNNING")
        assert {running[name]["NodeList"] for name in (SGD, ADAM)} == set(slurm.NODES)
        died = running[SGD]["NodeList"]
        cluster.kill(died)
        while (job := jobs(cluster)[SGD])["JobState"] != "PENDING":
            time.sleep(0.5)
        # Slurm would wait two minutes.
        cluster.ask("scontrol", "update", f"JobId={job['JobId']}", "StartTime=now")
        assert command.end() == 0, command.output

    ended = jobs(cluster)
    assert set(ended) == STAGES
    assert {job["JobState"] for job in ended.values()} == {"COMPLETED"}
    assert ended[SGD]["Restarts"] == "1" and ended[SGD]["NodeList"] != died
    (log,) = (project.folder / f".snakemake/slurm_logs/rule_train/{SGD}").iterdir()
    assert re.search(r"goes on after epoch ([1-9]|1[0-4])$", log.read_text(), re.MULTILINE)
    assert UP_TO_DATE in project.run("dvc", "status")
    assert UP_TO_DATE in project.run("dvc", "repro")

    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # as in profiles/slurm
    undisturbed.repro()
    assert project.digests() == undisturbed.digests()
    cluster.start_node(died)


def test_a_cancelled_job_and_a_failed_stage_are_named_and_the_next_run_goes_on(
    cluster: slurm.Cluster, project: Project
) -> None:
    with project.params() as params:
        params["train"]["epochs"] = 60
        params["variants"]["sgd"]["lr"] = 0.02
    broken = project.folder / ".checkpoints/sgd"
    broken.rename(broken.with_name("kept"))
    broken.touch()
    with started(project, *SNAKEMAKE) as command:
        while ADAM not in (running := jobs(cluster, "RUNNING")):
            assert command.process.poll() is None, command.process.communicate()[0]
            time.sleep(0.5)
        cluster.ask("scancel", running[ADAM]["JobId"])
        assert command.end() == 1, command.output
    number = running[ADAM]["JobId"]
    assert f"'{number}' failed, SLURM status is: 'CANCELLED'" in command.output
    assert f"{SGD}: error: [Errno 20] Not a directory" in command.output
    assert not {"compare", "select"} & set(jobs(cluster, "PENDING,RUNNING"))

    broken.unlink()
    with project.params() as params:
        params["train"]["epochs"] = 3
    printed = project.run(*SNAKEMAKE)
    assert "10 of 10 steps (100%) done" in printed
    assert UP_TO_DATE in project.run("dvc", "status")
