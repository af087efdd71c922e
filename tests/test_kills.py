"""Kill `make repro` at random moments, run it again, and compare with an undisturbed run.

`make test-all` does so with a few kills; `make faults` with a hundred, and prints a report.
"""

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from datetime import date
from pathlib import Path
from random import Random
from threading import Timer

import pytest
import torch

from stages.support import machine
from tests.commands import started
from tests.conftest import Project

KILLS = int(os.environ.get("KILLS", "4"))
SEED = 0
SIGNALS = (signal.SIGKILL,) * 4 + (signal.SIGTERM, signal.SIGINT)
WINDOW = 4  # seconds after the start of a stage in which the kill falls
# The environment that make would build is the one that runs this test.
MAKE_REPRO = ("make", "--assume-old=.venv/.stamp", "repro")
# What a killed DVC leaves of a copy, and nothing removes (`dvc_objects.fs.utils.tmp_fname`).
DVCS_OWN = re.compile(r"(?:^|/)\.[\w-]{22}\.tmp$")


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(
    finished: Project, new_project: Callable[[], Project]
) -> None:
    results, random = finished.digests(), Random(SEED)
    kills: Counter[tuple[str, str]] = Counter()  # by stage and signal
    runs = epochs = refused = 0
    begun = time.monotonic()
    while kills.total() < KILLS:
        project, output, killed = new_project(), "", "nothing yet"
        while killed:
            number = random.choice(SIGNALS)
            nth, seconds = random.choice((1, 1, 2)), WINDOW * random.random()
            printed, killed = killed_run(project, number, nth, seconds)
            output += printed
            if killed:
                kills[killed, number.name] += 1
            require_whole(project.folder, results, finished=not killed)
        trained = output.count("\nEpoch [")
        assert trained <= 2 * 2, f"{output}\n{trained} epochs were saved, of 2 trainings"
        runs, epochs = runs + 1, epochs + trained
        refused += output.count("had been cut short")
    print(report(kills, runs, refused, epochs, (time.monotonic() - begun) / 60))


def killed_run(
    project: Project, number: signal.Signals, nth: int, seconds: float
) -> tuple[str, str]:
    """Run `make repro`, and kill its process group some seconds after the start of the nth stage.

    Returns:
        What was printed, and the stage that was killed: an empty text if the run ended before.
    """
    output, killed = "", ""

    def kill() -> None:
        nonlocal killed
        killed = re.findall(r"Running stage '([^'@]+)", output)[-1]
        os.killpg(command.process.pid, number)

    with started(project, *MAKE_REPRO) as command:
        assert command.process.stdout is not None
        timer = Timer(seconds, kill)
        for line in command.process.stdout:
            output += line
            if line.startswith("Running stage") and output.count("\nRunning stage") == nth:
                timer.start()
        code = command.process.wait()
        timer.cancel()
    assert killed or code == 0, f"{output}\n`make repro` failed by itself"
    return output, killed if code else ""


def require_whole(folder: Path, results: dict[str, str], finished: bool) -> None:
    """Check that every file is a whole result or temporary; at the end, that all are there."""
    digests = Project(folder).digests()
    found = {name: sha for name, sha in digests.items() if not DVCS_OWN.search(name)}
    wrong = {name for name in found if found[name] != results.get(name)}
    if finished:
        wrong |= results.keys() - found.keys()
    else:
        wrong = {name for name in wrong if ".tmp" not in name}
    assert not wrong, f"not as in the undisturbed run: {', '.join(sorted(wrong))}"


def report(
    kills: Counter[tuple[str, str]], runs: int, refused: int, epochs: int, minutes: float
) -> str:
    """Return what came of the kills as Markdown, with the date and the machine."""
    place = machine.describe(torch.device("cpu"))
    signals = [number.name for number in dict.fromkeys(SIGNALS)]
    rows = [
        f"| {stage} | " + " | ".join(str(kills[stage, name]) for name in signals) + " |"
        for stage in dict.fromkeys(stage for stage, _ in kills)
    ]
    return "\n".join(
        [
            f"\n{date.today()}, {place['processor']} ({place['machine']}), {place['cores']} cores, "
            f"{place['system']}, Python {place['python']}, torch {place['torch']}; "
            f"seed {SEED}, {minutes:.0f} minutes.\n",
            "| killed in | " + " | ".join(signals) + " |",
            "|---" * (1 + len(signals)) + "|",
            *rows,
            f"\n{kills.total()} kills; {runs} runs got to the end, with nothing done by hand.",
            "Files that were not as in the undisturbed run, or half-written after a kill: 0.",
            f"Runs that a plain `dvc repro` would have refused after a kill: {refused}.",
            f"Epochs trained and saved: {epochs}, of which again: 0.",
        ]
    )


@pytest.mark.parametrize(
    ("name", "killed", "finished"),
    [
        ("models/.Z4twNcYDvP-EA18KJ-B2CA.tmp", True, True),  # DVC's
        ("models/.0.safetensors.tmp", True, False),
        ("models/sgd/0.safetensors.tmp/0.safetensors", True, False),
        ("models/sgd/1.safetensors", False, False),
    ],
)
def test_what_a_kill_may_leave(tmp_path: Path, name: str, killed: bool, finished: bool) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    for ended, allowed in ((False, killed), (True, finished)):
        with nullcontext() if allowed else pytest.raises(AssertionError, match=re.escape(name)):
            require_whole(tmp_path, {}, finished=ended)
