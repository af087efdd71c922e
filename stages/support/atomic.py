"""Files that appear whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from stages.support.errors import InputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; the file that the block writes there then takes the place of `path`.

    The file is on disk before it is renamed, and the renaming is on disk at the end, so that a loss
    of power leaves the old file or the new one. If the block fails, `path` is as it was.

    Raises:
        InputError: the disk is full, the folder read-only, or the like.
    """
    with _os_errors_as_input_errors(path), _in_temporary_folder(path) as folder:
        yield folder / path.name
        _to_disk(folder / path.name)
        (folder / path.name).replace(path)
        _to_disk(path.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield an empty temporary folder, which then takes the place of `path`, files and all.

    The old folder is set aside first, because a renaming cannot replace a folder that holds files.
    An error or a signal between the two renamings puts the old folder back. A kill there leaves no
    `path`, and DVC runs the stage again.

    Raises:
        InputError: as `replacing`.
    """
    retired = path.with_name(path.name + ".old.tmp")
    with _os_errors_as_input_errors(path), _in_temporary_folder(path) as folder:
        yield folder
        for entry in (*folder.iterdir(), folder):  # The outputs have no folders within.
            _to_disk(entry)
        remove(retired)
        try:
            if path.exists():
                path.rename(retired)
            folder.rename(path)
        except BaseException:
            if retired.exists() and not path.exists():
                retired.rename(path)
            raise
        _to_disk(path.parent)
        shutil.rmtree(retired, ignore_errors=True)


def temporary_folder(path: Path) -> Path:
    """Return the folder in which `replacing` and `replacing_folder` prepare the new `path`."""
    return path.with_name(path.name + ".tmp")


def remove(path: Path) -> None:
    """Remove whatever is there: a folder with all that it holds, a file, a link, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _in_temporary_folder(path: Path) -> Iterator[Path]:
    # A folder even for one file, because safetensors writes a temporary file of its own beside it.
    folder = temporary_folder(path)
    remove(folder)  # A run that was killed may have left one.
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _os_errors_as_input_errors(path: Path) -> Iterator[None]:
    """Turn an error of the disk into an InputError.

    The block should only write files: any OSError in it is reported as a failed write.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} was not written: {error}; no partial file is left: free disk space, or make "
            "the folder writable, then run the command again"
        ) from None


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file that appears whole or not at all, as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON. A number that JSON lacks, such as NaN, is a ValueError."""
    write_bytes(path, f"{json.dumps(value, indent=2, allow_nan=False)}\n".encode())
