# `make parallel` and clusters: Snakemake says when and where a stage runs, DVC whether it has to.
# The graph is DVC's own; what a stage may take is in profiles/.

import json
import sys
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.lock import make_lock
from dvc.repo import Repo

try:
    # Under DVC's lock, since half of a dvc.lock that another stage writes cannot be read.
    with Repo(_wait_for_lock=True) as repo, repo.lock:
        graph = repo.index.graph
        # DVC rewrites its table of who reads and writes what in place. A kill or a full disk
        # cuts it short, and DVC then refuses every stage, also one that a scheduler starts again.
        table = Path(repo.tmp_dir, "rwlock")
        hardlink = repo.config["core"]["hardlink_lock"]
        with make_lock(f"{table}.lock", repo.tmp_dir, hardlink_lock=hardlink, wait=True):
            try:
                json.loads(table.read_bytes())
            except FileNotFoundError:
                pass
            except ValueError:
                table.unlink(missing_ok=True)
                print("removed .dvc/tmp/rwlock, which had been cut short", file=sys.stderr)
except DvcException as error:
    raise WorkflowError(f"{error}: `dvc status` says more") from None
NEEDS = {stage.addressing: [need.addressing for need in graph[stage]] for stage in graph}


def marker(stage):
    return f".snakemake/done/{stage}"


rule all:
    input:
        map(marker, NEEDS),


# A rule per stage of dvc.yaml, so that profiles can name it: `train` for all of train@adam-0 ...
for group in dict.fromkeys(stage.partition("@")[0] for stage in NEEDS):

    rule:
        name:
            group
        input:
            lambda wildcards: map(marker, NEEDS[wildcards.stage]),
        output:
            touch(marker("{stage}")),
        wildcard_constraints:
            stage=f"{group}(@.+)?",
        log:
            ".snakemake/stages/{stage}.log",
        # Lines of stages that run side by side carry their names; who writes them outlives Ctrl-C, so
        # that a stage can say where it stopped.
        shell:
            "dvc --wait-for-lock repro --single-item {wildcards.stage:q} 2>&1 | "
            "(trap '' INT TERM; sed -u '/^$/d; s|^|{wildcards.stage}: |' | tee {log})"
