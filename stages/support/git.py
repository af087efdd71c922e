"""What git knows, also of DVC's experiments."""

import os
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

# The commit message of the experiments of `make variants`, with the name of the variant. Any other
# experiment is the user's own, and so is one that the user has renamed.
MESSAGE_OF_VARIANTS = "make variants: {}"


def experiments() -> dict[str, str]:
    """Return the git references of DVC's experiments, and the name of each.

    DVC keeps an experiment of commit C as refs/exps/C[:2]/C[2:]/NAME.
    """
    listed = git("for-each-ref", "--format=%(refname)", "refs/exps").split()
    return {ref: ref.rpartition("/")[2] for ref in listed if ref.count("/") == 4}


def is_of_variants(reference: str, name: str) -> bool:
    """Tell whether `make variants` made the experiment of this reference, and gave it its name."""
    return git("log", "-1", "--format=%s", reference) == MESSAGE_OF_VARIANTS.format(name)


def outdated(names: Iterable[str], summaries: Path) -> list[str]:
    """Return which experiments of `make variants` hold other metrics than the summaries now have.

    DVC resolves a name to an experiment without asking how old it is, so `dvc metrics diff` would
    show old numbers. In a copy that `dvc exp run --temp` works in, nothing is outdated.
    """
    if checkouts_above():
        return []
    wanted = set(names)
    return sorted(
        {
            name
            for reference, name in experiments().items()
            if name in wanted
            and is_of_variants(reference, name)
            and git("show", f"{reference}:./metrics/selected.json")
            != (summaries / f"{name}.json").read_text(encoding="utf-8").strip()
        }
    )


def checkouts_above() -> list[Path]:
    """Return the checkouts that this folder is a copy of: `dvc exp run --temp` copies into .dvc."""
    return [folder.parent for folder in Path.cwd().parents if folder.name == ".dvc"]


def git(*arguments: str) -> str:
    """Return what a git command prints; an empty text if it fails, or if git is not there."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            env=environment_without_git_variables(),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            check=False,
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def environment_without_git_variables() -> dict[str, str]:
    """Return the environment without the variables that point git at a certain repository.

    Git exports GIT_DIR and more to hooks and to `git rebase --exec`. With them, a command in a copy
    of the repository would work on the user's own.
    """
    bound = _git_variables()
    return {name: value for name, value in os.environ.items() if name not in bound}


@cache
def _git_variables() -> frozenset[str]:
    """Return the names of the variables that bind git to one repository."""
    printed = subprocess.check_output(["git", "rev-parse", "--local-env-vars"], text=True)
    return frozenset(printed.split())
