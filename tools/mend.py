"""Remove the table of DVC's running stages, where a kill or a full disk has cut it short.

DVC rewrites this table in place, and refuses to run anything while it is no JSON (dvc#6097). The
table only matters while something runs, so nothing is lost. `make repro` and the Snakefile do this;
before a plain `dvc repro`, `python -m tools.mend` does.
"""

import json
import sys
from pathlib import Path

from dvc.exceptions import DvcException  # type: ignore[import-untyped]
from dvc.lock import make_lock  # type: ignore[import-untyped]
from dvc.repo import Repo  # type: ignore[import-untyped]

from stages.support.errors import InputError, told


def main() -> None:
    """Remove the table, if it was cut short; wait for any dvc that is at work."""
    try:
        with Repo(_wait_for_lock=True) as repo, repo.lock:
            remove_cut_table(repo)
    except DvcException as error:
        raise InputError(str(error)) from None


def remove_cut_table(repo: Repo) -> None:
    """Remove the table of a repository whose lock is held, if the table was cut short."""
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


if __name__ == "__main__":
    with told():
        main()
