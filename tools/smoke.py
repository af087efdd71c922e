"""Run the real pipeline on a tiny configuration, in a temporary copy of this checkout."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.lib.command import InputError, run


def main() -> None:
    """Run the real pipeline with 20 images a class and 1 epoch; the checkout stays untouched."""
    with tempfile.TemporaryDirectory(prefix="smoke-") as folder:
        copy = Path(folder)
        copy_checkout(Path.cwd(), copy)
        params = read_params(copy)
        params["data"]["per_class"] = 20
        params["train"]["epochs"] = 1
        write_params(copy, params)
        for command in (["repro"], ["metrics", "show"]):
            if subprocess.run(["dvc", *command], cwd=copy, check=False).returncode:
                raise InputError(f"dvc {' '.join(command)} failed; see above")


def copy_checkout(checkout: Path, copy: Path) -> None:
    """Copy what git tracks or would track, without results, into a new git repository."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.check_output(listed, cwd=checkout, text=True).split("\0")
    for name in filter(None, names):
        is_result = name == "dvc.lock" or name.startswith("metrics/")
        if not is_result and (checkout / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkout / name, copy / name)
    subprocess.run(["git", "init", "--quiet", "--initial-branch=main"], cwd=copy, check=True)


def read_params(checkout: Path) -> dict[str, Any]:
    """Return params.yaml as plain values, read as DVC reads it."""
    params: dict[str, Any] = YAML(typ="safe").load(checkout / "params.yaml")
    return params


def write_params(checkout: Path, params: dict[str, Any]) -> None:
    """Write params.yaml from plain values, as DVC writes it."""
    YAML().dump(params, checkout / "params.yaml")


if __name__ == "__main__":
    run(main)
