"""The profile of profiles/slurm on a real Slurm of two nodes that this machine plays."""

import re
import shutil
from collections.abc import Callable, Iterator
from functools import partial

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
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SLURM_CONF", raising=False)  # which would name another cluster
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


def has_saved(command: Command, project: Project, variant: str) -> bool:
    """Return whether a training has saved an epoch; what runs it must not have ended before."""
    assert command.process.poll() is None, command.process.communicate()[0]
    return (project.folder / f".checkpoints/{variant}/0.safetensors").exists()


def test_a_node_dies_and_its_training_goes_on_from_its_checkpoint_on_the_other(
    cluster: slurm.Cluster, new_project: Callable[[], Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    project, undisturbed = new_project(), new_project()
    for one in (project, undisturbed):
        with one.params() as params:
            params["train"]["epochs"] = 15
    with started(project, *SNAKEMAKE, "--slurm-keep-successful-logs") as command:
        for variant in ("sgd", "adam"):
            slurm.wait_until(partial(has_saved, command, project, variant))
        running = jobs(cluster, "RUNNING")
        assert {running[name]["NodeList"] for name in (SGD, ADAM)} == set(slurm.NODES)
        died = running[SGD]["NodeList"]
        cluster.kill(died)
        slurm.wait_until(lambda: jobs(cluster)[SGD]["JobState"] == "PENDING")
        # Slurm would wait two minutes.
        cluster.ask("scontrol", "update", f"JobId={running[SGD]['JobId']}", "StartTime=now")
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
        params["train"]["epochs"] = 20
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
        assert command.end() == 1, command.output
    assert f"'{number}' failed, SLURM status is: 'CANCELLED'" in command.output
    assert f"{SGD}: error: [Errno 20] Not a directory" in command.output
    after = jobs(cluster)
    ran = {name for name in after if after[name]["JobId"] != before.get(name, {}).get("JobId")}
    assert ran == {"download", "subset", SGD, ADAM}

    broken.unlink()
    (project.folder / ".dvc/tmp/rwlock").write_text("")  # as a job that is killed may leave it
    printed = project.run(*SNAKEMAKE)
    assert "10 of 10 steps (100%) done" in printed
    log = project.folder / f".snakemake/stages/{ADAM}.log"
    assert "goes on after epoch" in log.read_text(encoding="utf-8")
    assert UP_TO_DATE in project.run("dvc", "status")
