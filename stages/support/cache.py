"""DVC's cache, which has the bytes of every output by their MD5."""

import hashlib
import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


def cached(md5: str) -> Path | None:
    """Return the object with this MD5, or None if the cache has none or DVC does not answer."""
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    path = Path(asked.stdout.strip(), "files", "md5", md5[:2], md5[2:])
    return path if asked.returncode == 0 and path.is_file() else None


def md5_of(path: Path) -> str:
    """Return the MD5 of a file, by which DVC knows it."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def damaged_object(output: Path) -> Path | None:
    """Return the object from which DVC takes an output, if the object is not as it was written.

    Args:
        output: a file of dvc.lock, or in a folder of dvc.lock.
    """
    md5 = _recorded_md5(output)
    path = cached(md5) if md5 else None
    return path if path and md5_of(path) != md5 else None


def _recorded_md5(output: Path) -> str | None:
    # dvc.lock may be missing, or half-written by another stage.
    with suppress(OSError, YAMLError, ValueError, KeyError, TypeError):
        stages: dict[str, Any] = YAML(typ="safe").load(Path("dvc.lock"))["stages"]
        outs = {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}
        if output.as_posix() in outs:
            return str(outs[output.as_posix()])
        folder = cached(outs[output.parent.as_posix()])
        listed = json.loads(folder.read_bytes()) if folder else []
        return next(str(file["md5"]) for file in listed if file["relpath"] == output.name)
    return None
