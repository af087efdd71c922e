"""Kill `dvc repro` at random moments, run it again, and compare with an undisturbed run."""

import hashlib
import os
import random
import re
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import torch

from stages.support import machine
from stages.support.errors import InputError, told
from stages.support.git import own_environment
from tools.copies import (
    copy_checkout,
    plain_params,
    save_every_epoch,
    write_params,
)

KILLS = 40
SEED = 0
STAGES = {"download", "subset", "train", "evaluate", "compare"}
SIGNALS = (signal.SIGKILL,) * 4 + (signal.SIGTERM, signal.SIGINT)
WINDOW = 4  # seconds after a stage's start in which the kill falls
# What a killed DVC leaves of a copy, and nothing removes (`dvc_objects.fs.utils.tmp_fname`).
DVCS = re.compile(r"(?:^|/)\.[\w-]{22}\.tmp$")
# What DVC writes in place, and refuses when a kill has cut it short (`dvc.rwlock`, `dvc.dvcfile`).
IN_PLACE = re.compile(
    r"(\.dvc/tmp/rwlock)'(?:\.| format)|'\./(dvc\.lock)' (?:is invalid|validation)"
)


@dataclass
class Tally:
    """What came of a series of kills."""

    hits: Counter[tuple[str, str]] = field(default_factory=Counter)  # by stage and signal
    runs: int = 0  # that got to the end
    removed: int = 0  # files of DVC's own that a kill had cut short
    epochs: int = 0  # that these trained and told


def main() -> None:
    """Kill the pipeline at random moments on a little real data; print a report in Markdown."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        undisturbed, disturbed = Path(folder, "undisturbed"), Path(folder, "disturbed")
        prepare(undisturbed)
        if subprocess.run(
            ["dvc", "repro"], cwd=undisturbed, check=False, env=own_environment()
        ).returncode:
            raise InputError("`dvc repro` fails even undisturbed; see above")

        def begin() -> Path:
            shutil.rmtree(disturbed, ignore_errors=True)
            prepare(disturbed, source=undisturbed / "data/raw")
            return disturbed

        tally = disturb(begin, digests(undisturbed), KILLS, STAGES)
    print(report(tally, (time.monotonic() - started) / 60))


def prepare(checkout: Path, source: Path | None = None) -> None:
    """Copy this checkout, with a small configuration; the data may come from a folder."""
    copy_checkout(Path.cwd(), checkout)
    params = plain_params(checkout)
    params["data"]["per_class"] = 10
    params["train"]["epochs"] = 3
    names = [*params["variants"]][:2]
    params["variants"] = {name: params["variants"][name] for name in names}
    params["variant"] = names[-1]
    if source:
        params["datasets"][params["dataset"]]["sources"] = [str(source)]
    write_params(checkout, params)
    save_every_epoch(checkout)


def digests(checkout: Path) -> dict[str, str]:
    """Return the SHA-256 of every result by its path, timings aside."""
    files = [path for top in ("data", "models", "metrics") for path in checkout.glob(f"{top}/**/*")]
    return {
        str(path.relative_to(checkout)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file() and "timing" not in path.parts and path.name != ".gitignore"
    }


def disturb(
    begin: Callable[[], Path], results: dict[str, str], kills: int, stages: set[str]
) -> Tally:
    """Kill `dvc repro` again and again, and begin anew whenever it got to the end.

    A file of DVC's own that a kill has cut short is removed, as README says.

    Args:
        begin: makes a checkout that has not run, always the same.
        results: digests of an undisturbed run in it.
        kills: how many at least.
        stages: each of which is to be hit.

    Raises:
        InputError: a result is not as in the undisturbed run, an epoch was trained again, or a run
            failed by itself.
    """
    source = random.Random(SEED)
    tally = Tally()
    while tally.hits.total() < kills or not stages <= {stage for stage, _ in tally.hits}:
        checkout, output, hit = begin(), "", "begun"
        while hit:
            number = source.choice(SIGNALS)
            plan = source.choice((0, 0, 1)), WINDOW * source.random(), number
            printed, hit, code = attempt(checkout, *plan)
            output += printed
            if hit:
                tally.hits[hit, number.name] += 1
                print(f"{tally.hits.total()}: {number.name} in {hit}", flush=True)
            elif code:
                hit = cut_short(printed)
                if not hit or tally.removed == tally.hits.total():
                    raise InputError(f"{printed}\n`dvc repro` failed by itself; see above")
                (checkout / hit).unlink()
                tally.removed += 1
            require_whole(checkout, results, finished=not hit)
        wanted = sum(
            len(path.read_text(encoding="utf-8").splitlines()) - 1
            for path in (checkout / "metrics/history").glob("*/*.csv")
        )
        trained = output.count("\nEpoch [")
        if trained > wanted:
            raise InputError(f"{output}\n{trained} epochs were trained and saved, not {wanted}")
        tally.runs += 1
        tally.epochs += trained
    return tally


def attempt(
    checkout: Path, stage: int, seconds: float, number: signal.Signals
) -> tuple[str, str, int]:
    """Run `dvc repro`, and kill its process group, if it has not ended before.

    Args:
        checkout: where.
        stage: which of the stages that it runs to wait for, the first being 0.
        seconds: to wait after that stage's start.
        number: the signal.

    Returns:
        what it printed, the stage that it was killed in or "", its exit code.
    """
    process = subprocess.Popen(
        ["dvc", "repro"],
        cwd=checkout,
        env=own_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        # A shell's background job ignores it, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    output, deadline, hit = b"", None, ""
    with process, selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        try:
            while True:
                left = None if deadline is None or hit else max(0.0, deadline - time.monotonic())
                if not selector.select(left):
                    hit = re.findall(r"Running stage '([^'@]+)", output.decode())[-1]
                    os.killpg(process.pid, number)
                elif block := os.read(process.stdout.fileno(), 1 << 16):
                    output += block
                    if deadline is None and output.count(b"Running stage '") > stage:
                        deadline = time.monotonic() + seconds
                else:  # nobody is left to write
                    return output.decode(), hit, process.wait()
        except BaseException:  # who kills this process does not reach the other session
            os.killpg(process.pid, signal.SIGKILL)
            raise


def cut_short(printed: str) -> str:
    """Return the path of the file of DVC's own that it refuses to read, or ""."""
    refused = IN_PLACE.search(printed)
    return refused[refused.lastindex or 0] if refused else ""


def require_whole(checkout: Path, results: dict[str, str], finished: bool) -> None:
    """Check that every file is a whole result or a temporary one; at the end, that all are there.

    Then the only temporary ones are DVC's own.

    Raises:
        InputError: some are not.
    """
    found = {name: sha for name, sha in digests(checkout).items() if not DVCS.search(name)}
    wrong = {name for name in found if found[name] != results.get(name)}
    if finished:
        wrong |= results.keys() - found.keys()
    else:
        wrong = {name for name in wrong if ".tmp" not in name}
    if wrong:
        raise InputError(f"not as in the undisturbed run: {', '.join(sorted(wrong))}")


def report(tally: Tally, minutes: float) -> str:
    """Return the tally as Markdown, with the date and the machine."""
    place = machine.describe(torch.device("cpu"))
    stages = dict.fromkeys(stage for stage, _ in tally.hits)
    signals = [number.name for number in dict.fromkeys(SIGNALS)]
    lines = [
        f"{date.today()}, {place['processor']} ({place['machine']}), {place['cores']} cores, "
        f"{place['system']}, Python {place['python']}, torch {place['torch']}; "
        f"seed {SEED}, {minutes:.0f} minutes.",
        "",
        "| killed in | " + " | ".join(signals) + " |",
        "|---" * (1 + len(signals)) + "|",
        *(
            f"| {stage} | " + " | ".join(str(tally.hits[stage, name]) for name in signals) + " |"
            for stage in stages
        ),
        "",
        f"{tally.hits.total()} kills; {tally.runs} runs got to the end. Files that were not as in "
        "the undisturbed run, or half-written after a kill: 0. "
        f"Files of DVC's own that a kill had cut short, and that were removed: {tally.removed}. "
        f"Epochs trained: {tally.epochs}, of which again: 0.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    with told():
        main()
