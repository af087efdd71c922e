"""A stage as a command: its arguments, and errors for the person who must act."""

import argparse
import inspect
import sys
from collections.abc import Callable


class InputError(Exception):
    """Something that the user can mend: says what was found where, and what to do about it."""


def run(stage: Callable[..., None]) -> None:
    """Call `stage` with the command line's arguments.

    The arguments are positional and carry the names and types of the stage's parameters. An
    `InputError`, or an `OSError` such as a full disk, ends the process with one message on stderr
    and exit code 1, an interrupt with 130: no traceback for what is not a defect of the program.
    """
    name = inspect.getmodule(stage).__spec__.name  # type: ignore[union-attr]  # set by `python -m`
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=inspect.getdoc(stage))
    for parameter in inspect.signature(stage).parameters.values():
        parser.add_argument(parameter.name, type=parameter.annotation)
    arguments = parser.parse_args()
    try:
        stage(**vars(arguments))
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
