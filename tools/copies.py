"""Copies of this checkout with parameters of their own, for tools and tests."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.support.errors import InputError
from stages.support.git import environment_without_git_variables, git


def copy_checkout(checkout: Path, copy: Path) -> None:
    """Copy what git tracks or would track, without results, into a new git repository."""
    if not git("-C", str(checkout), "rev-parse", "--git-dir"):
        raise InputError(f"{checkout} is not a git repository: clone it instead of unpacking it")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.check_output(listed, cwd=checkout, env=environment_without_git_variables())
    for name in filter(None, os.fsdecode(names).split("\0")):  # A name may be no UTF-8.
        is_result = name == "dvc.lock" or name.startswith("metrics/")
        if not is_result and (checkout / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(checkout / name, copy / name)  # with its time, which make compares
    init = ["git", "init", "--quiet", "--initial-branch=main"]
    subprocess.run(init, cwd=copy, check=True, env=environment_without_git_variables())


def plain_params(checkout: Path) -> dict[str, Any]:
    """Return params.yaml as plain values, read as DVC reads it."""
    params: dict[str, Any] = YAML(typ="safe").load(checkout / "params.yaml")
    return params


def write_params(checkout: Path, params: Mapping[str, Any]) -> None:
    """Write params.yaml from plain values, as DVC writes it."""
    YAML().dump(params, checkout / "params.yaml")


def commit_all(checkout: Path) -> None:
    """Commit a copy as it is, so that experiments can be made in it."""
    author = {"GIT_AUTHOR_NAME": "copy", "GIT_AUTHOR_EMAIL": "copy@localhost"}
    author |= {name.replace("AUTHOR", "COMMITTER"): value for name, value in author.items()}
    # Hooks and signatures are for the user's own commits.
    commit = ["-c", "core.hooksPath=/dev/null", "commit", "--no-gpg-sign", "--quiet"]
    for command in (["add", "--all"], [*commit, "--message", "a copy"]):
        subprocess.run(
            ["git", *command],
            cwd=checkout,
            check=True,
            env=environment_without_git_variables() | author,
        )
