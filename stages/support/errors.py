"""Errors for the person who must act, and signals: a message instead of a traceback."""

import os
import re
import shlex
import signal
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError
from io import TextIOWrapper
from pathlib import Path
from types import FrameType

from packaging.requirements import InvalidRequirement

from stages.support.cache import damaged

GOES_ON = "`dvc repro` goes on after the last finished stage and epoch"
# PyTorch has an exception class for this on GPUs only. Elsewhere it raises a plain RuntimeError.
OUT_OF_MEMORY = (
    "out of memory|not enough memory|allocate memory|bad_alloc|"
    "ALLOC_FAILED|ALLOCATION_FAILED|Invalid buffer size"
)


class InputError(Exception):
    """Something that the user can mend. The message says what was found where, and what to do."""


# The remedies stand here, so that better words train nothing again.
def unusable(path: Path, reason: object) -> InputError:
    """Return the error about a result that is missing, damaged or of another kind.

    Where DVC's own copy is damaged, DVC would put the damaged bytes back again and again.
    """
    return InputError(f"{path}: {reason}; {_remove(damaged(path)) or '`dvc repro` makes it anew'}")


def misplaced(reason: str) -> InputError:
    """Return the error about results that are whole, but not those that belong there."""
    remedy = _remove(damaged(Path("models"), Path("metrics/history")))
    restored = "`dvc checkout --force` restores them, or `dvc repro` makes them"
    return InputError(f"{reason}; {remedy or restored}")


def _remove(files: list[Path]) -> str:
    """Return the remedy for damaged objects of DVC's cache; empty if there are none."""
    command = shlex.join(["rm", "-f", *map(str, files)])
    return f"DVC's copy is damaged too: `{command}`, then `dvc repro`" if files else ""


@contextmanager
def told() -> Iterator[None]:
    """End the process with a message, not a traceback, for what is no defect of the program.

    The exit code is 1 after an `InputError`, an `OSError` or a lack of memory, 130 after SIGINT and
    143 after SIGTERM. Enter this before slow imports, so that it covers them too.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a script's `command &` has it
            signal.signal(number, _stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            with suppress(OSError):  # It may be closed, or be no place to write to.
                stream.reconfigure(errors="replace")  # characters that it lacks, such as ±
    try:
        yield
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except (tomllib.TOMLDecodeError, InvalidRequirement, PackageNotFoundError) as error:
        sys.exit(f"error: pyproject.toml: {error}; `git checkout pyproject.toml` restores it")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search(OUT_OF_MEMORY, str(error)):
            raise
        sys.exit(f"error: out of memory; {GOES_ON}")


class _Postponed:
    """`waits`: signals are being held back. `number`: the signal held back, 0 for none."""

    waits = False
    number = 0


def postpone_signals() -> None:
    """Let the next signal wait until `obey_signals`, so that short work can end and be saved.

    A second signal ends the process at once, here as always.
    """
    _Postponed.waits = True


def signal_waits() -> bool:
    """Tell whether a signal has come that waits for `obey_signals`."""
    return _Postponed.number != 0


def obey_signals() -> None:
    """Obey the signal that waits, if there is one, and from now on each as it comes."""
    _Postponed.waits, number, _Postponed.number = False, _Postponed.number, 0
    if number:
        sys.exit(128 + number)


def _stop(number: int, _: FrameType | None) -> None:
    # A second signal ends the process at once, whatever is left behind.
    for again in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(again) is _stop:
            signal.signal(again, signal.SIG_DFL)
    # Not print: the signal may have interrupted a print, which cannot be entered again.
    when = "after this epoch, which is then saved; " if _Postponed.waits else ""
    name = signal.Signals(number).name
    with suppress(OSError):  # Nobody may be left to read it, and a signal is obeyed all the same.
        os.write(2, f"\nstopped by {name}; {when}{GOES_ON}\n".encode())
    if _Postponed.waits:
        _Postponed.number = number
    else:
        sys.exit(128 + number)
