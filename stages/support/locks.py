"""One process at a time for each stage and training."""

import os
import platform
from contextlib import suppress
from pathlib import Path

from filelock import AcquireReturnProxy, FileLock, Timeout

LOCKS = Path(".locks")


def sole_run(key: str) -> AcquireReturnProxy[FileLock]:
    """Wait until no other process in this folder holds the lock `key`, then take and return it.

    DVC lets no two of its runs write one output. But if only dvc is killed, its stage keeps
    running, and the next dvc would start the same stage beside it.
    """
    LOCKS.mkdir(exist_ok=True)
    path = LOCKS / key
    lock = FileLock(path)
    try:
        held = lock.acquire(blocking=False)
    except Timeout:
        owner = path.read_text(encoding="utf-8")
        print(f"waiting: process {owner} is at {key}; `kill` ends it", flush=True)
        held = lock.acquire()
    with suppress(OSError):  # The disk may be full, and this is only for the message.
        path.write_text(f"{os.getpid()} on {platform.node()}", encoding="utf-8")
    return held
