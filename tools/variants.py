"""Make one DVC experiment per variant, named as it: `dvc metrics diff sgd adam` compares two."""

import subprocess

from stages.lib.command import InputError, run
from stages.lib.params import load_params


def main() -> None:
    """Make one DVC experiment per variant, in which only `select` runs."""
    variants = load_params().variants
    untracked = subprocess.check_output(
        ["git", "ls-files", "--others", "--exclude-standard", "metrics"], text=True
    ).splitlines()
    if untracked:  # they would be missing in the folder that --temp makes
        raise InputError(
            f"{', '.join(untracked)}: not in git yet; `git add metrics dvc.lock` first"
        )
    # An experiment of that name from another commit would make the name ambiguous, or be shown.
    references = subprocess.check_output(
        ["git", "for-each-ref", "--format=%(refname)", "refs/exps"], text=True
    ).split()
    for reference in references:
        if reference.count("/") == 4 and reference.rpartition("/")[2] in variants:
            subprocess.run(["git", "update-ref", "-d", reference], check=True)
    for variant in variants:
        # --temp leaves the work tree alone; without --single-item, --force would train again.
        command = ["dvc", "exp", "run", "--temp", "--force", "--single-item", "--name", variant]
        command += ["--set-param", f"variant={variant}", "select"]
        if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode:
            raise InputError(f"dvc made no experiment {variant}; see above")
    print(f"dvc metrics diff, plots diff and params diff now take any two of {', '.join(variants)}")


if __name__ == "__main__":
    run(main)
