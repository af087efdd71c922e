"""A GPU each, on stand-ins for the devices: no test here needs a GPU."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from stages.support import gpus
from tests.conftest import CHECKOUT

DEVICES = ["GPU-1", "GPU-2"]
HOLD = """
import sys
from pathlib import Path
from stages.support.gpus import first_free
print(first_free(["GPU-1", "GPU-2"], Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FileLock]]:
    """What this process holds, which it gives up afterwards."""
    locks: list[FileLock] = []
    monkeypatch.setattr(gpus, "_held", locks)
    yield locks
    for lock in locks:
        lock.release()


def test_each_takes_the_first_that_is_free_and_all_share_when_none_is(
    tmp_path: Path, held: list[FileLock]
) -> None:
    assert gpus.first_free(DEVICES, tmp_path / "locks") == 0
    assert gpus.first_free(DEVICES, tmp_path / "locks") == 1
    assert gpus.first_free(DEVICES, tmp_path / "locks") == os.getpid() % 2
    held[0].release()
    assert gpus.first_free(DEVICES, tmp_path / "locks") == 0


def test_the_order_of_the_devices_does_not_matter(tmp_path: Path) -> None:
    # CUDA_VISIBLE_DEVICES may show them in another order, or fewer of them.
    assert gpus.first_free(DEVICES, tmp_path) == 0
    assert gpus.first_free(["GPU-1"], tmp_path) == 0  # shared
    assert gpus.first_free(DEVICES[::-1], tmp_path) == 0


def test_another_process_has_its_own_until_it_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=CHECKOUT, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "0\n"
        assert gpus.first_free(DEVICES, tmp_path) == 1
        other.kill()
    assert gpus.first_free(DEVICES, tmp_path) == 0
