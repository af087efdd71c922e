"""DVC's cache, which has the bytes of every output by their MD5."""

import hashlib
import json
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError


def cache_object(md5: str) -> Path | None:
    """Return the object with this MD5, or None if the cache has none or DVC does not answer."""
    folder = _folder(Path.cwd())
    if folder is None:
        return None
    path = folder / "files" / "md5" / md5[:2] / md5[2:]
    return path if path.is_file() else None


def md5_of(path: Path) -> str:
    """Return the MD5 of a file, by which DVC knows it."""
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def damaged(*outputs: Path) -> list[Path]:
    """Return every file whose object in the cache is damaged, each followed by the object's path.

    Of a folder, whose object lists its files, only the object is returned.

    Args:
        outputs: paths of dvc.lock; also a file in such a folder, or a folder above such paths.
    """
    found: list[Path] = []
    for output in outputs:
        for path, md5 in _recorded(output).items():
            cached = cache_object(md5)
            if cached and md5_of(cached) != md5.removesuffix(".dir"):
                found += [cached] if md5.endswith(".dir") else [path, cached]
    return found


@cache
def _folder(_checkout: Path) -> Path | None:
    """Return DVC's cache of the current folder; the parameter is only the key of `@cache`."""
    command = [sys.executable, "-m", "dvc", "cache", "dir"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    return Path(asked.stdout.strip()) if asked.returncode == 0 else None


def _recorded(output: Path) -> dict[Path, str]:
    """Return path and MD5 of what dvc.lock records at or below `output`, and of its folder."""
    files: dict[Path, str] = {}
    for lock_file in (Path("dvc.lock"), *Path().glob("variants/*/dvc.lock")):  # docs/scaling.md
        # It may be missing, or half-written by another stage.
        with suppress(OSError, YAMLError, ValueError, KeyError, TypeError, AttributeError):
            files |= _outputs(lock_file.absolute(), lock_file.stat().st_mtime_ns)
    for path, md5 in [*files.items()]:
        listed = cache_object(md5) if md5.endswith(".dir") else None
        if listed and path in (output, output.parent):
            with suppress(ValueError, KeyError, TypeError):  # The list itself may be damaged.
                inner = json.loads(listed.read_bytes())
                files |= {path / file["relpath"]: str(file["md5"]) for file in inner}
    return {
        path: md5
        for path, md5 in files.items()
        if output in (path, *path.parents) or (md5.endswith(".dir") and path == output.parent)
    }


@cache
def _outputs(lock_file: Path, _changed: int) -> dict[Path, str]:
    """Return path and MD5 of all outputs that a dvc.lock records.

    The time of its last change is only a key of `@cache`, so that a changed file is read anew.
    """
    stages: dict[str, Any] = YAML(typ="safe").load(lock_file)["stages"]
    outs = [out for stage in stages.values() for out in stage.get("outs", [])]
    return {Path(out["path"]): str(out["md5"]) for out in outs}
