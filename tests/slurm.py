"""A Slurm of this machine's own: munged, slurmctld, and a slurmd for each of its two nodes."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from filelock import FileLock

CONFIGURATION = Path("/etc/slurm/slurm.conf")  # jobs do not inherit SLURM_CONF
NODES = ("n1", "n2")
PORT = 17000  # of slurmctld; the nodes have those after it
MARK = "# of tests/slurm.py\n"  # a file with it was left by a killed test
PATIENCE = 300  # seconds after which what does not happen never will; no test waits for it


def unavailable() -> str:
    """Return why no Slurm can be started here; an empty text if one can."""
    for command in ("munged", "slurmctld", "slurmd", "sbatch", "runuser"):
        if not shutil.which(command):
            return f"{command} is not installed (Debian: apt-get install slurm-wlm munge)"
    if os.geteuid() != 0:
        return "only root can start a Slurm"
    if CONFIGURATION.exists() and not CONFIGURATION.read_text(encoding="utf-8").startswith(MARK):
        return f"{CONFIGURATION} is there: another Slurm's"
    return ""


def wait_until(happened: Callable[[], bool]) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"waited {PATIENCE} s in vain"
        time.sleep(0.2)


class Cluster:
    """A running Slurm, with its state and logs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, *command: str) -> None:
        """Start a daemon that writes a log of this name."""
        with (self.folder / f"{name}.log").open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def start_node(self, name: str) -> None:
        """Start a node, and wait until Slurm gives it jobs."""
        (self.folder / name).mkdir(exist_ok=True)
        self.start(name, "slurmd", "-D", "-N", name)
        wait_until(lambda: self._takes_jobs(name))

    def _takes_jobs(self, node: str) -> bool:
        for name, process in self.daemons.items():
            log = self.folder / f"{name}.log"
            assert process.poll() is None, f"{name} has ended:\n{log.read_text()}"
        command = ["sinfo", "--noheader", f"--nodes={node}", "--format=%t"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        # Nothing is printed while slurmctld is not there yet; a star says that a node is silent.
        return done.stdout in ("idle\n", "mix\n", "alloc\n")

    def kill(self, node: str) -> None:
        """End all processes of a node at once, its jobs' too, as if its power were cut."""
        watching, of_jobs = set(), set()
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # it has ended
                if process.environ().get("SLURMD_NODENAME") == node:
                    of_jobs.add(process)
                    parent = process.parent()
                    if parent and parent.name().startswith("slurmstepd"):
                        watching.add(parent)
        daemon = self.daemons.pop(node)
        daemon.kill()
        # Who watches the jobs first, lest it reports how they ended.
        for process in [*watching, *of_jobs]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        daemon.wait()

    def ask(self, *command: str) -> str:
        """Return what one of Slurm's commands prints."""
        return subprocess.check_output(command, text=True)


@contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Start a Slurm, wait until all nodes are there, and leave nothing of it in the end."""
    host = socket.gethostname()
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=8000"
        for port, name in enumerate(NODES, PORT + 1)
    )
    cluster = Cluster(folder)
    configuration = f"""{MARK}ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={PORT}
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
# Slurm would forget a job five minutes after its end, and the tests ask for it later.
MinJobAge=86400
# Some clusters start no job again, unless it asks for it, as profiles/slurm does.
JobRequeue=0
SlurmctldPidFile={folder}/slurmctld.pid
StateSaveLocation={folder}/state
SlurmdPidFile={folder}/%n.pid
SlurmdSpoolDir={folder}/%n
{nodes}
PartitionName=all Nodes=ALL Default=YES State=UP
"""
    with FileLock(Path(tempfile.gettempdir(), "slurm-of-tests.lock")):  # one per machine
        CONFIGURATION.write_text(configuration, encoding="utf-8")
        try:
            if subprocess.run(["munge", "--no-input"], capture_output=True, check=False).returncode:
                Path("/run/munge").mkdir(exist_ok=True)
                shutil.chown("/run/munge", "munge", "munge")
                cluster.start("munged", "runuser", "--user=munge", "--", "munged", "--foreground")
            (folder / "state").mkdir()
            cluster.start("slurmctld", "slurmctld", "-D")
            for name in NODES:
                cluster.start_node(name)
            yield cluster
        finally:
            CONFIGURATION.unlink()
            for name in set(NODES) & set(cluster.daemons):
                cluster.kill(name)
            for daemon in cluster.daemons.values():
                daemon.terminate()
                daemon.wait()
