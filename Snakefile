# `make parallel` and clusters: Snakemake says when and where a stage runs, DVC whether it has to.
# The graph is DVC's own; what a stage may take is in profiles/.

import json
import sys
from pathlib import Path

from dvc.exceptions import DvcException
from dvc.repo import Repo

sys.path.insert(0, workflow.basedir)
from stages.support.atomic import write_json
from stages.support.errors import InputError
from stages.support.params import load_params
from tools.mend import mend

# What each stage needs. A job on a cluster, which is a Snakemake of its own, finds it written by
# the run that has started the job: DVC would take seconds in a large graph, and hold its lock.
NEEDS_FILE = Path(".snakemake/needs.json")

try:
    # Under DVC's lock, since half of a dvc.lock that another stage writes cannot be read.
    with Repo(_wait_for_lock=True) as repo, repo.lock:
        # Also for a job that a scheduler starts again after its node has died.
        mend(repo)
        if workflow.is_main_process:
            if Path("params.yaml").exists():
                load_params()  # DVC removes a stage's outputs before the stage can refuse them.
            graph = repo.index.graph
            needs = {stage.addressing: [need.addressing for need in graph[stage]] for stage in graph}
            write_json(NEEDS_FILE, needs)
except InputError as error:
    raise WorkflowError(str(error)) from None
except DvcException as error:
    raise WorkflowError(f"{error}: `dvc status` says more") from None
NEEDS = json.loads(NEEDS_FILE.read_text(encoding="utf-8"))


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
        # Each line begins with its stage's name, since stages run side by side. What writes the lines
        # ignores Ctrl-C, so that a stage's last line, where it stopped, still comes through.
        shell:
            "dvc --wait-for-lock repro --single-item {wildcards.stage:q} 2>&1 | "
            "(trap '' INT TERM; sed -u '/^$/d; s|^|{wildcards.stage}: |' | tee {log})"
