"""The one entry: `python -m stages STAGE ...` runs a stage, `python -m stages` lists them."""

import argparse
import ast
import inspect
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TextIO

from stages.support.digests import STAGES, code_at_start, edited_code
from stages.support.errors import GOES_ON, InputError, errors_as_messages
from stages.support.locks import sole_run

NAMES = ("download", "subset", "train", "evaluate", "compare", "select", "promote")
PARAMS = Path("params.yaml")


def main() -> None:
    """Run the stage that the command line names, or list the stages."""
    parser = argparse.ArgumentParser(
        "python -m stages",
        description="Run one stage of dvc.yaml, with the arguments that stand there.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=NAMES, metavar="STAGE")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")
    if sys.argv[1:2] in ([], ["-h"], ["--help"]):
        listing = "\n".join(f"  {name:10}{_summary(STAGES / f'{name}.py')}" for name in NAMES)
        explain = "`python -m stages STAGE --help` explains its arguments."
        parser.epilog = f"stages:\n{listing}\n\n{explain}"
        parser.print_help()
        return
    command = parser.parse_args()

    code_at_start()
    stage = import_module(f"stages.{command.stage}").main
    arguments = vars(parser_of(command.stage, stage).parse_args(command.arguments))
    if not PARAMS.exists():
        raise InputError(f"{PARAMS} not found; run from the top folder of the repository")
    # The lock's name is the stage with its variant and seed, without paths and options.
    key = [str(value) for value in arguments.values() if isinstance(value, str | int)]
    with sole_run("-".join([command.stage, *key])):
        params = PARAMS.read_bytes()
        stage(**arguments)
        # DVC records code and parameters as they are after the run. If they were edited meanwhile,
        # DVC would record these results as those of the edited version. `train` compares the
        # parameters itself: it runs for long, and an edit that does not concern it may pass.
        changed = edited_code()
        if command.stage != "train" and PARAMS.read_bytes() != params:
            changed.append(str(PARAMS))
        if changed:
            raise InputError(f"{', '.join(changed)} changed while this ran: run it again")


def _summary(module: Path) -> str:
    """Return the first line of a module's docstring, without importing the module."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def parser_of(name: str, stage: Callable[..., None]) -> argparse.ArgumentParser:
    """Return a parser for a stage's parameters: those with a default are options."""
    parser = argparse.ArgumentParser(
        f"python -m stages {name}",
        description=inspect.getdoc(stage),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for parameter in inspect.signature(stage).parameters.values():
        if parameter.default is parameter.empty:
            parser.add_argument(parameter.name, type=parameter.annotation)
        else:
            option = f"--{parameter.name.replace('_', '-')}"
            # argparse converts a default to `type` only if the default is a string.
            parser.add_argument(option, type=parameter.annotation, default=str(parameter.default))
    return parser


class _Lasting:
    """A stream that outlives its terminal: what nobody can read any more is dropped."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, if it can still be written."""
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if it can still be written."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> object:
        """Be the stream in all else."""
        return getattr(self._stream, name)


def _outlive_the_terminal() -> None:
    """Keep a stage running if a stream can no longer be written, or lacks a character."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        stream.reconfigure(errors="replace")
        setattr(sys, name, _Lasting(stream))


if __name__ == "__main__":
    _outlive_the_terminal()
    with errors_as_messages(advice=GOES_ON):
        main()
