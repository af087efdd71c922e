"""What the environments cost: seconds to build them from nothing, and gigabytes on disk."""

import argparse
import shutil
import tempfile
import time
from pathlib import Path

from bench.pipeline import run
from stages.support.errors import errors_as_messages

CHECKOUT = Path(__file__).parents[1]
TARGETS = {"env": "make repro", "env-all": "make test"}


def main() -> None:
    """Build each environment from nothing, one after the other, and print a line for each."""
    for target, command in TARGETS.items():
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for file in ("Makefile", "pyproject.toml", "constraints.txt"):
                shutil.copy(CHECKOUT / file, folder)
            started = time.perf_counter()
            run(folder, "make", target)
            elapsed = time.perf_counter() - started
            gigabytes = sum(path.lstat().st_blocks for path in folder.rglob("*")) * 512 / 1e9
        print(f"{command}: {elapsed:.0f} s, {gigabytes:.1f} GB", flush=True)


if __name__ == "__main__":
    argparse.ArgumentParser("python -m bench.environment", description=__doc__).parse_args()
    with errors_as_messages():
        main()
