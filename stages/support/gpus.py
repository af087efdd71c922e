"""A GPU for each process, where there are several."""

import os
import tempfile
from pathlib import Path

import torch
from filelock import FileLock, Timeout

_held: list[FileLock] = []  # a lock is given up when nothing refers to it


def take_gpu() -> int:
    """Return the number of a GPU that no other process of this pipeline uses, until this one ends.

    Where all are in use, the processes share them. The GPUs are those that CUDA_VISIBLE_DEVICES
    shows. The choice changes no number.
    """
    uuids = [
        str(torch.cuda.get_device_properties(number).uuid)
        for number in range(torch.cuda.device_count())
    ]
    return first_free(uuids, Path(tempfile.gettempdir(), f"gpus-{os.getuid()}"))


def first_free(devices: list[str], locks: Path) -> int:
    """Return the position of the first device whose lock nobody holds, and hold the lock.

    Args:
        devices: names that no two devices of the machine share.
        locks: a folder, the same for all processes of the machine.
    """
    locks.mkdir(exist_ok=True)
    for position, name in enumerate(devices):
        lock = FileLock(locks / name)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            continue
        _held.append(lock)
        return position
    return os.getpid() % len(devices)
