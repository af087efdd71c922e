"""One module per stage of dvc.yaml."""

import hashlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def digest(path: Path) -> str:
    """Return the beginning of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def code_digests() -> dict[str, str]:
    """Return the digest of every module here, by its path."""
    return {
        str(path.relative_to(FOLDER.parent)): digest(path)
        for path in sorted(FOLDER.glob("**/*.py"))
        if path.is_file()  # an editor may keep a dangling link beside what it has not saved
    }


# Before any of them is loaded: code that is edited later is never taken for the code that runs.
CODE_AT_START = code_digests()

if sys.argv[0] == "-m":  # the stage is about to be imported, and with it torch, which takes seconds
    from stages.lib.command import catch_signals

    catch_signals()
