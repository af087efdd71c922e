"""A stage as a command: its arguments, one run at a time, and errors for who must act."""

import argparse
import inspect
import os
import platform
import re
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FrameType

from filelock import AcquireReturnProxy, FileLock, Timeout

from stages import CODE_AT_START, FOLDER, code_digests

LOCKS = Path(".locks")
GOES_ON = "`dvc repro` goes on after the last finished stage and epoch"
# PyTorch has a class for it on a GPU alone; what it says elsewhere is a mere RuntimeError.
OUT_OF_MEMORY = (
    "out of memory|not enough memory|allocate memory|bad_alloc|"
    "ALLOC_FAILED|ALLOCATION_FAILED|Invalid buffer size"
)

_read: dict[Path, bytes] = {}  # by `read_to_compare`


class InputError(Exception):
    """Something that the user can mend: says what was found where, and what to do about it."""


def run(stage: Callable[..., None]) -> None:
    """Call `stage` with the command line's arguments.

    The arguments are positional and carry the names and types of the stage's parameters. Of runs
    whose arguments differ in paths alone, one goes on and the others wait. An `InputError`, or an
    `OSError` such as an unreadable file, ends the process with one message on stderr and exit code
    1, SIGINT and SIGTERM with 130 and 143: no traceback for what is not a defect of the program.
    """
    name = inspect.getmodule(stage).__spec__.name  # type: ignore[union-attr]  # set by `python -m`
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=inspect.getdoc(stage))
    for parameter in inspect.signature(stage).parameters.values():
        parser.add_argument(parameter.name, type=parameter.annotation)
    arguments = vars(parser.parse_args())
    what = [str(value) for value in arguments.values() if not isinstance(value, Path)]
    catch_signals()
    try:
        with _sole_run("-".join([name, *what])) if arguments else nullcontext():
            stage(**arguments)
        # DVC records the code and the parameters that it finds after the run for those of the run.
        now = code_digests()
        changed = [name for name, old in loaded_code().items() if now.get(name) != old]
        changed += [str(path) for path, old in _read.items() if path.read_bytes() != old]
        if changed:
            raise InputError(f"{', '.join(changed)} changed while this ran: run it again")
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search(OUT_OF_MEMORY, str(error)):
            raise
        sys.exit(f"error: out of memory; {GOES_ON}")


def read_to_compare(path: Path) -> bytes:
    """Return a file's content, and let `run` fail at its end if that has changed.

    The last reading counts: who reads a file twice compares the two.
    """
    _read[path] = path.read_bytes()
    return _read[path]


def loaded_code() -> dict[str, str]:
    """Return the digest of every module of the stages that this process has loaded, by its path."""
    files = {getattr(module, "__file__", None) for module in [*sys.modules.values()]}
    return {
        name: digest for name, digest in CODE_AT_START.items() if str(FOLDER.parent / name) in files
    }


def catch_signals() -> None:
    """Let SIGINT and SIGTERM end this process with a message, once temporary files are gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a script's `command &` wants it
            signal.signal(number, _stop)


def _stop(number: int, _: FrameType | None) -> None:
    # A second one ends it at once, whatever is left behind.
    for again in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(again) is _stop:
            signal.signal(again, signal.SIG_DFL)
    name = signal.Signals(number).name
    # Not print, which a signal may have interrupted.
    os.write(2, f"\nstopped by {name}; {GOES_ON}\n".encode())
    sys.exit(128 + number)


def _sole_run(key: str) -> AcquireReturnProxy[FileLock]:
    """Return the lock of a stage, held, once no other process of this folder holds it.

    DVC lets no two of its runs write one output, but a stage whose dvc was killed alone goes on.
    """
    LOCKS.mkdir(exist_ok=True)
    path = LOCKS / key
    lock = FileLock(path)
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        owner = path.read_text(encoding="utf-8")
        print(f"waiting: process {owner} is at {key}; `kill` ends it", flush=True)
        held = lock.acquire()
    with suppress(OSError):  # a full disk; it is only for the message
        path.write_text(f"{os.getpid()} on {platform.node()}", encoding="utf-8")
    return held
