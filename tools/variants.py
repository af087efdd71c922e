"""Make one DVC experiment per variant, named as it: `dvc metrics diff sgd adam` compares two."""

import argparse
import subprocess
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from stages.support.errors import InputError, errors_as_messages
from stages.support.git import (
    MESSAGE_OF_VARIANTS,
    environment_without_git_variables,
    experiments,
    git,
    is_of_variants,
)
from stages.support.params import load_params

# What git keeps of work that is not finished. A checkout, as DVC makes one, drops it.
UNDER_WAY = {
    "MERGE_HEAD": "merge",
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "sequencer": "cherry-pick or revert",
    "BISECT_LOG": "bisection",
}


def main() -> None:
    """Make one DVC experiment per variant, in which only `select` runs."""
    variants = load_params().variants
    require_a_usable_repository()
    require_free_names(variants)
    existing = experiments()
    replaced = {ref: name for ref, name in existing.items() if name in variants}
    for reference, name in replaced.items():
        if not is_of_variants(reference, name):
            raise InputError(
                f"the experiment {name} ({reference}) is not one of this tool: "
                f"`dvc exp rename {reference} OTHER` keeps it under another name, "
                f"`dvc exp remove {reference}` removes it"
            )
    dropped = {
        reference: name
        for reference, name in existing.items()
        if name not in variants and is_of_variants(reference, name)
    }
    environment = environment_without_git_variables()
    run = partial(subprocess.run, env=environment, text=True)
    dry = ["dvc", "repro", "--allow-missing", "--dry"]
    asked = run(dry, capture_output=True)
    if asked.returncode:
        raise InputError(f"`{' '.join(dry)}` failed:\n{asked.stderr.strip()}")
    if "Running stage" in asked.stdout:
        raise InputError(
            "the results are not of these parameters and this code: `dvc repro` and `git commit` "
            "first, or an experiment would show new parameters beside old numbers"
        )
    # An experiment of this name from another commit would make the name ambiguous, or be shown.
    for reference in replaced | dropped:
        run(["git", "update-ref", "-d", reference], check=True)
    for name in dropped.values():
        print(f"removed the experiment {name}: params.yaml has no such variant any more")
    for variant in variants:
        # --temp leaves the work tree alone; without --single-item, --force would train again.
        command = ["dvc", "exp", "run", "--temp", "--force", "--single-item", "--name", variant]
        # Quoted, since DVC would read a name such as 1e3 as a number.
        command += ["--set-param", f"variant='{variant}'"]
        command += ["--message", MESSAGE_OF_VARIANTS.format(variant), "select"]
        # Not `subprocess.run`, which kills dvc after a signal: dvc has stashed the user's edits,
        # and brings them back before it ends. Leaving the block waits for that.
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment) as dvc:
            dvc.wait()
        if dvc.returncode:
            raise InputError(f"dvc made no experiment {variant}; see above")
    if missing := set(variants) - set(experiments().values()):
        raise InputError(f"dvc made no experiment {', '.join(sorted(missing))}, and gave no reason")
    print(f"dvc metrics diff, plots diff and params diff now take any two of {', '.join(variants)}")


def require_a_usable_repository() -> None:
    """Check what DVC needs of a repository to make experiments in it.

    Raises:
        InputError: something is missing. DVC would fail without saying why, or seem to succeed.
    """
    if not git("rev-parse", "--git-dir"):
        raise InputError(f"{Path.cwd()} is not a git repository, and DVC's experiments are commits")
    if not git("rev-parse", "--verify", "--quiet", "HEAD"):
        raise InputError("there is no commit yet: `git add --all` and `git commit` first")
    for file, what in UNDER_WAY.items():
        if Path(git("rev-parse", "--git-path", file)).exists():
            raise InputError(
                f"a {what} is under way, and DVC would break it off: finish it first; `git status` "
                "says how"
            )
    if git("rev-parse", "--is-shallow-repository") == "true":
        raise InputError(
            "this is a shallow clone, and DVC keeps no experiment in one: `git fetch --unshallow`"
        )
    if not str(Path.cwd()).isascii():
        raise InputError(
            f"{Path.cwd()}: DVC makes no experiment in a folder whose path is not ASCII: move the "
            "checkout, or clone it elsewhere"
        )
    config = Path(git("rev-parse", "--git-path", "config"))
    for number, line in enumerate(config.read_bytes().splitlines(), start=1):
        if not line.isascii():
            raise InputError(
                f"{config}, line {number}: {line.decode(errors='replace').strip()}: DVC makes no "
                "experiment where this file is not ASCII: take the line out, or move a value into "
                "your own settings with `git config --global`"
            )
    untracked = git("ls-files", "--others", "--exclude-standard", "metrics").splitlines()
    if untracked:  # They would be missing in the folder that --temp makes.
        raise InputError(
            f"{', '.join(untracked)}: not in git yet; `git add --all` and `git commit` first, as "
            "an experiment begins with what is committed"
        )
    if changed := git("diff", "--name-only", "HEAD", "--", "params.yaml", "dvc.lock", "metrics"):
        raise InputError(
            f"{', '.join(changed.splitlines()[:3])}: not as committed; `git commit --all` first, "
            "as an experiment begins with what is committed"
        )


def require_free_names(variants: Iterable[str]) -> None:
    """Check that no variant's name means a commit already: git's meaning would win over DVC's.

    Raises:
        InputError: names the variant, and what to do.
    """
    renaming = {
        "heads": "branch {0}: rename it with `git branch --move {0} OTHER`",
        "tags": "tag {0}: rename it with `git tag OTHER {0}` and `git tag --delete {0}`",
    }
    for variant in variants:
        # DVC takes a branch of a remote for the name too.
        remote = git("for-each-ref", "--format=%(refname:short)", f"refs/remotes/*/{variant}")
        if remote:
            raise InputError(
                f"variants.{variant}: `dvc metrics diff` would take the name for the remote branch "
                f"{remote.splitlines()[0]}: rename the variant in params.yaml"
            )
        if not git("rev-parse", "--verify", "--quiet", variant):
            continue
        owner = "commit of that name (`git rev-parse {0}`): remove it, if it is a reference"
        for kind, words in renaming.items():
            if git("rev-parse", "--verify", "--quiet", f"refs/{kind}/{variant}"):
                owner = words
        raise InputError(
            f"variants.{variant}: `dvc metrics diff` would take the name for the "
            f"{owner.format(variant)}, or rename the variant in params.yaml"
        )


if __name__ == "__main__":
    argparse.ArgumentParser("python -m tools.variants", description=__doc__).parse_args()
    with errors_as_messages():
        main()
