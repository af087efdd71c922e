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


# All remedies are in this file, on which no stage depends: rewording one trains nothing again.
def unusable(path: Path, reason: object) -> InputError:
    """Return the error about a result that is missing, damaged or of another kind.

    Where DVC's own copy is damaged, DVC would put the damaged bytes back again and again.
    """
    return InputError(f"{path}: {reason}; {_remedy(damaged(path)) or '`dvc repro` makes it anew'}")


def misplaced(reason: str) -> InputError:
    """Return the error about results that are whole, but not those that belong there."""
    remedy = _remedy(damaged(Path("models"), Path("metrics/history")))
    restored = "`dvc checkout --force` restores them, or `dvc repro` makes them"
    return InputError(f"{reason}; {remedy or restored}")


def _remedy(files: list[Path]) -> str:
    """Return what to do about damaged objects of DVC's cache; an empty text if there are none."""
    command = shlex.join(["rm", "-f", *map(str, files)])
    return f"DVC's copy is damaged too: `{command}`, then `dvc repro`" if files else ""


@contextmanager
def errors_as_messages(advice: str = "") -> Iterator[None]:
    """End the process with a message, not a traceback, for what is no defect of the program.

    The exit code is 1 after an `InputError`, an `OSError` or a lack of memory, 130 after SIGINT and
    143 after SIGTERM. Enter this before slow imports, so that it covers them too.

    Args:
        advice: what to do after a signal or a lack of memory.
    """
    _Signals.advice = advice and f"; {advice}"
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # A script's `command &` ignores SIGINT.
            signal.signal(number, _stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # The stream may lack characters such as ±. An OSError comes where a pipe has taken the
            # place of the stream's file in this very process, as in a fork.
            with suppress(OSError):
                stream.reconfigure(errors="replace")
    try:
        yield
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:
        # Whatever read the output has ended, as `| head` does. At its end, Python would write what
        # is left, and complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    # These two come from `require_pinned_versions` in stages/learning. An edit there would train
    # everything again, so their messages are here.
    except PackageNotFoundError as error:
        sys.exit(
            f"error: the package {error.name} is not installed: `make env` installs it; if "
            "pyproject.toml names a wrong one, `git checkout pyproject.toml` restores it"
        )
    except (tomllib.TOMLDecodeError, InvalidRequirement) as error:
        reason = " ".join(str(error).split())
        sys.exit(f"error: pyproject.toml: {reason}; `git checkout pyproject.toml` restores it")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search(OUT_OF_MEMORY, str(error)):
            raise
        sys.exit(f"error: out of memory{_Signals.advice}")


class _Signals:
    """How signals are treated."""

    postponed = False  # A signal waits for `stop_postponing_signals`.
    pending = 0  # the signal that waits, 0 for none
    advice = ""  # ends the message about a signal


def postpone_signals() -> None:
    """Let the next signal wait until `stop_postponing_signals`, so that work can be saved.

    A second signal ends the process at once, here as always.
    """
    _Signals.postponed = True


def signal_is_pending() -> bool:
    """Tell whether a signal has come that waits for `stop_postponing_signals`."""
    return _Signals.pending != 0


def stop_postponing_signals() -> None:
    """End the process if a signal waits; from now on, obey each as it comes."""
    _Signals.postponed, number, _Signals.pending = False, _Signals.pending, 0
    if number:
        sys.exit(128 + number)


def _stop(number: int, _: FrameType | None) -> None:
    # A second signal ends the process at once, whatever is left behind.
    for again in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(again) is _stop:  # An ignored SIGINT stays ignored.
            signal.signal(again, signal.SIG_DFL)
    # Not print: the signal may have interrupted a print, which cannot be entered again.
    name = signal.Signals(number).name
    postponed = f"{name} received: this epoch is trained and saved first"
    what = postponed if _Signals.postponed else f"stopped by {name}"
    with suppress(OSError):  # Nobody may be left to read it, and a signal is obeyed all the same.
        os.write(2, f"\n{what}{_Signals.advice}\n".encode())
    if _Signals.postponed:
        _Signals.pending = number
    else:
        sys.exit(128 + number)
