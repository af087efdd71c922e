"""Run the real pipeline on a tiny configuration, in a temporary copy of this checkout."""

import subprocess
import tempfile
from pathlib import Path

from stages.support.errors import InputError, told
from tools.copies import copy_checkout, own_environment, plain_params, write_params


def main() -> None:
    """Run the real pipeline with 20 images a class and 1 epoch; the checkout stays untouched."""
    with tempfile.TemporaryDirectory(prefix="smoke-") as folder:
        copy = Path(folder)
        copy_checkout(Path.cwd(), copy)
        params = plain_params(copy)
        params["data"]["per_class"] = 20
        params["train"]["epochs"] = 1
        write_params(copy, params)
        for command in (["repro"], ["metrics", "show"]):
            done = subprocess.run(["dvc", *command], cwd=copy, check=False, env=own_environment())
            if done.returncode:
                raise InputError(f"dvc {' '.join(command)} failed; see above")


if __name__ == "__main__":
    with told():
        main()
