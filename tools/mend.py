"""Repair what a kill or a full disk has left of DVC's own files, and check params.yaml.

DVC refuses to run anything in three cases, and this module mends each:

- .dvc/tmp/rwlock, its table of running stages, is cut short: DVC rewrites it in place (dvc#6097).
  The table matters only while something runs, so it is removed.
- The table names a process that was killed, but that no parent has waited for. DVC takes such a
  process for a running one. In a container without an init process that is so for ever.
- dvc.lock is cut short. What ran since the last commit is in DVC's cache all the same.

`make repro` and the Snakefile do this by themselves. Before a plain `dvc repro`, type
`python -m tools.mend`.
"""

import argparse
import json
import sys
from itertools import filterfalse
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
from dvc.dvcfile import Lockfile  # type: ignore[import-untyped]
from dvc.exceptions import DvcException  # type: ignore[import-untyped]
from dvc.lock import make_lock  # type: ignore[import-untyped]
from dvc.repo import Repo  # type: ignore[import-untyped]
from dvc.utils.serialize import EncodingError  # type: ignore[import-untyped]
from dvc.utils.strictyaml import (  # type: ignore[import-untyped]
    YAMLSyntaxError,
    YAMLValidationError,
)

from stages.support.atomic import write_bytes, write_json
from stages.support.errors import InputError, errors_as_messages
from stages.support.git import git
from stages.support.params import load_params


def main() -> None:
    """Repair the checkout, and check the parameters; wait for any dvc that is at work."""
    try:
        with Repo(_wait_for_lock=True) as repo, repo.lock:
            mend(repo)
    except DvcException as error:
        raise InputError(str(error)) from None
    load_params()  # DVC removes a stage's outputs before the stage can refuse wrong parameters.


def mend(repo: Repo) -> None:
    """Repair a repository whose lock is held.

    Raises:
        InputError: dvc.lock has a merge conflict, which is the user's to resolve.
    """
    _mend_table(repo)
    root = Path(repo.root_dir)
    for lock in (root / "dvc.lock", *root.glob("variants/*/dvc.lock")):  # as docs/scaling.md has it
        _mend_lock(lock, repo)


def _mend_table(repo: Repo) -> None:
    path = Path(repo.tmp_dir, "rwlock")
    hardlink = repo.config["core"]["hardlink_lock"]
    with make_lock(f"{path}.lock", repo.tmp_dir, hardlink_lock=hardlink, wait=True):
        try:
            table = json.loads(path.read_bytes())
            readers, writers = table.get("read", {}), table.get("write", {})
        except FileNotFoundError:
            return
        except (ValueError, AttributeError):  # no JSON, or not an object
            path.unlink(missing_ok=True)
            print("removed .dvc/tmp/rwlock, which had been cut short", file=sys.stderr)
            return
        living = {
            "read": {name: [*filterfalse(_is_zombie, of)] for name, of in readers.items()},
            "write": {name: of for name, of in writers.items() if not _is_zombie(of)},
        }
        if living != {"read": readers, "write": writers}:
            write_json(path, living)
            print("removed killed processes from .dvc/tmp/rwlock", file=sys.stderr)


def _is_zombie(process: dict[str, Any]) -> bool:
    try:
        return bool(psutil.Process(process["pid"]).status() == psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, KeyError):
        return False  # DVC removes these itself.


def _mend_lock(path: Path, repo: Repo) -> None:
    name = path.relative_to(repo.root_dir)
    try:
        Lockfile(repo, str(path)).load()
    except (EncodingError, YAMLSyntaxError, YAMLValidationError):
        if b"\n<<<<<<< " in b"\n" + path.read_bytes():
            raise InputError(
                f"{name} has a merge conflict. Once params.yaml and the code are merged, type\n"
                f"  git checkout HEAD -- {name} metrics\n"
                "and run the pipeline: DVC's cache has the results of both sides"
            ) from None
        if committed := git("-C", str(path.parent), "show", "HEAD:./dvc.lock"):
            write_bytes(path, f"{committed}\n".encode())
            print(f"{name} had been cut short, and is as committed again", file=sys.stderr)
        else:
            path.unlink()
            print(f"removed {name}, which had been cut short", file=sys.stderr)


if __name__ == "__main__":
    argparse.ArgumentParser("python -m tools.mend", description=__doc__).parse_args()
    with errors_as_messages():
        main()
