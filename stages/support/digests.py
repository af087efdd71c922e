"""Short digests of files, and of the code that this process runs."""

import hashlib
import sys
from functools import cache
from pathlib import Path

from stages.support.errors import unusable

STAGES = Path(__file__).parents[1]
UNRECORDED = ("stages/support/", "stages/__main__.py")  # no stage depends on these


def short_sha256(path: Path) -> str:
    """Return the first 16 hexadecimal digits of a file's SHA-256."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except FileNotFoundError as error:
        raise unusable(path, error.strerror) from None


@cache
def code_at_start() -> dict[str, str]:
    """Return the digest of every module that a stage may depend on, by its path.

    The first call computes the digests. `stages.__main__` calls this before it imports a stage, so
    the digests describe the code that the process runs, even if a file is edited later.
    """
    modules = sorted(STAGES.glob("**/*.py"))
    names = {path.relative_to(STAGES.parent).as_posix(): path for path in modules}
    # Editors leave hidden copies and dangling links, which .dvcignore hides from DVC, too.
    return {
        name: short_sha256(path)
        for name, path in names.items()
        if "/." not in name and not name.startswith(UNRECORDED)
    }


def edited_code() -> list[str]:
    """Return the imported modules that were edited or removed since `code_at_start` was called."""
    # A list first: an import in another thread would change the dictionary during the loop.
    loaded = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    return [
        name
        for name, digest in code_at_start().items()
        if str(path := STAGES.parent / name) in loaded
        and not (path.is_file() and short_sha256(path) == digest)
    ]
