"""params.yaml, whatever is written in it: typed parameters, or a line for each wrong value."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError

from stages.support.errors import InputError
from stages.support.params import Params, load_params

pytestmark = pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")
FUZZ = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)

# Short, since a YAML parser in Python takes most of the time.
VALID = """\
# A comment.
dataset: mnist
variant: sgd
seeds: [0]
data: {per_class: 600, pad: 2, scale: none, classes: [3]}
network:
  batch_norm_momentum: 0.1
  widths:
  - 8
  - M
  hidden: [16]  # Another one.

train: {epochs: 10, batch_size: 64, device: auto, precision: auto}
variants:
  sgd:
    activation: relu
    dropout: 0.5
    optimizer: sgd
    lr: 0.01
    momentum: 0.9
datasets:
  mnist:
    sources:
    - torchvision:MNIST
    sha256:
      t10k-labels-idx1-ubyte: >-
        65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5
"""
# What breaks a line, moves the cursor or cannot be encoded; and words from inside pydantic.
UNFIT = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
    r"|Input should|Value error|Dictionary|tuple|validation|pydantic|type=|\[key\]|unable to parse"
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "params.yaml"


def plain(value: Any) -> Any:
    """Return the value with lists for tuples, as YAML has them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple) else value


def read_by_dvc(path: Path) -> object:
    """Return the values that DVC reads, or the error: its parser raises many kinds."""
    try:
        return YAML(typ="safe").load(path.read_text("utf-8"))
    except Exception as error:
        return error


def refusal(path: Path, content: bytes) -> list[str]:
    """Load the content and check what comes of it; return the lines that refuse it, if any."""
    path.write_bytes(content)
    values = read_by_dvc(path)
    try:
        params = load_params(path)
    except InputError as error:
        lines = str(error).split("\n")
        assert len(str(error)) < 10_000
        for line in lines:
            assert line.startswith((f"{path}: ", f"{path} is not YAML: "))
            assert not UNFIT.search(line), line
            assert len(line) < 1_000
        with pytest.raises(ValueError):  # what DVC reads is as wrong
            Params.model_validate(values)
        return lines
    assert Params.model_validate(params.model_dump()) == params
    with pytest.raises(ValidationError, match="frozen"):
        params.train.epochs = 1
    if not isinstance(values, DuplicateKeyError):  # DVC itself tells of a key that is there twice
        assert plain(params.model_dump(exclude_unset=True)) == values
    return []


SPELLINGS = re.split(
    "; ",
    "1e-05; 1E5; .5; +.5; -.5; 5.; .5e3; 1_0; 1_; 1_0.5; 0_8; ._; .inf; -.INF; .nan; 1e999; 0x1F; "
    "0o10; 0b10; 010; 09; -0; +1; 1:30; 1:30.5; yes; No; on; off; y; TRUE; null; ~; =; <<; []; {}; "
    "2020-01-01; 2020-13-01; 1-2; *x; &x; &x 1; &x [*x]; &x {a: *x}; |; >-; !x; !x 1; ?; -; :; %; "
    "!!int; !!int x; !!int 1; !!int [1]; !!float; !!float x; !!float 1; !!bool; !!bool x; @; ''; "
    "!!bool no; !!null x; !!str; !!str 1; !!set {a}; !!omap [a: 1]; !!pairs [a]; !!binary a; [1]; "
    "!!binary é; !!timestamp x; !!timestamp; !!python/name:os.getcwd; '\\0'; {<<: {a: 1}}; {a: 1}; "
    '"\\ud800"; "\\UFFFFFFFF"; "\\U00110000"; "\\0"; "\\e"; "\\N"; "a\\nb"; "a\\xzz"; \ufeff; \x85',
)
LONG = [
    "9" * 400,
    "9" * 5_000,
    "0x" + "9" * 5_000,
    *(start + "x" * 5_000 for start in ("", *"A!*")),
]
SPELT = [
    *(r"(?<=epochs: )10", r"(?<=lr: )0.01", r"(?<=- )M", r"torchvision:MNIST", r"65a50c\w+"),
    *(r"(?<=optimizer: )sgd", r"epochs(?=:)", r"(?<=  )sgd(?=:)", r"t10k[^:]+"),
]


@pytest.mark.parametrize("spelling", [*SPELLINGS, *LONG], ids=lambda text: ascii(text)[:20])
def test_a_spelling_means_what_it_means_to_dvc_or_is_refused(path: Path, spelling: str) -> None:
    for place in SPELT:
        content, count = re.subn(place, lambda _: spelling, VALID)
        assert count
        refusal(path, content.encode())


STRINGS = st.text(max_size=8) | st.sampled_from(
    ["a\nb", "\r", "\x1b[31m", "\u2028", "\x85", "\ud800", "1e-05", "x" * 5_000]
)
# The tests flush denormal numbers to zero, as the stages do.
FLOATS = st.floats(allow_subnormal=False) | st.floats(0, 1, allow_subnormal=False)
NUMBERS = st.integers() | st.integers(0, 20) | FLOATS
KEYS = STRINGS | NUMBERS | st.none() | st.booleans() | st.dates()
HUGE = st.sampled_from([2**64, 10**400, -(10**400)])
LIKELY = st.sampled_from(
    ["adam", "sgd", "relu", "all", "auto", "none", "kmnist", "M", [8, "M"], [], 1, 3, 0.5, [2, 5]]
)
VALUES = LIKELY | st.recursive(
    KEYS | HUGE | st.datetimes() | st.binary(max_size=3),
    lambda v: st.lists(v, max_size=4) | st.dictionaries(KEYS, v, max_size=4),
    max_leaves=6,
)


def places(value: Any, *place: Any) -> list[tuple[Any, ...]]:
    """Return the keys that lead to each value of the tree."""
    if not isinstance(value, dict | list):
        return [place]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [place, *(found for key, item in inner for found in places(item, *place, key))]


PLACES = st.sampled_from(places(yaml.safe_load(VALID))[1:])
CHANGES = st.tuples(
    st.sampled_from(["replace", "replace", "delete", "add", "rename"]), PLACES, KEYS, VALUES
)


def change(tree: Any, action: str, place: tuple[Any, ...], key: Any, value: Any) -> str:
    """Change the tree at a place; return the dotted key that a refusal of it must be about."""
    *sections, last = place
    for section in sections:
        tree = tree[section]
    if action == "replace":
        tree[last] = value
    elif action == "delete":
        del tree[last]
    elif isinstance(tree, list):
        tree.append(value)
    else:
        tree[key] = tree.pop(last) if action == "rename" else value
    return ".".join(map(str, place if action in ("replace", "delete") else sections))


def is_about(line: str, owner: str) -> bool:
    """Return whether the line names the key, one above or below it, or one checked with it."""
    parts = owner.split(".")
    keys = [".".join(parts[: end + 1]) for end in range(len(parts))]
    keys.append(parts[0].removesuffix("s"))  # variants and variant, datasets and dataset
    keys.append(re.sub(r"optimizer$", "momentum", owner))
    keys.append(re.sub(r"data.pad$", "network.widths", owner))
    return not owner or line.startswith((f"{owner}.", *(f"{key}: " for key in keys)))


@settings(FUZZ, max_examples=150)
@given(changes=st.lists(CHANGES, min_size=1, max_size=2))
def test_changed_values_are_valid_or_refused_by_their_keys(path: Path, changes: list[Any]) -> None:
    tree = yaml.safe_load(VALID)
    owners = []
    for one in changes:
        with suppress(LookupError, TypeError):  # an earlier change took the place
            owners.append(change(tree, *one))
    for line in refusal(path, yaml.safe_dump(tree, sort_keys=False).encode()):
        assert line.startswith(f"{path}: ")
        assert any(is_about(line.removeprefix(f"{path}: "), owner) for owner in owners), line


CHARACTERS = st.characters() | st.sampled_from(" \t\n:-#[]{}&*!|>'\"%@`,?0123456789.e_")


@settings(FUZZ, max_examples=150)
@given(st.data())
def test_a_changed_text_is_valid_or_refused(path: Path, data: st.DataObject) -> None:
    lines = VALID.splitlines(keepends=True)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        line, new = lines[at], data.draw(CHARACTERS)
        start = data.draw(st.integers(0, len(line)))
        inserted, overwritten = (line[:start] + new + line[end:] for end in (start, start + 1))
        kept = line[:start] + line[start + 1 :]
        moved = ["", line * 2, f" {line}", f"  {line}", f"\t{line}", line.removeprefix(" ")]
        lines[at] = data.draw(st.sampled_from([inserted, overwritten, kept, *moved]))
    refusal(path, "".join(lines).encode())


DEEP = st.builds(
    lambda start, inside, end, depth: f"{start * depth}{inside}{end * depth}",
    st.sampled_from(["[", "{a: ", "- ", "? ", "!!set {", "&a [", "*a: "]),
    st.sampled_from(["", "1", "*a", "&a [*a]"]),
    st.sampled_from(["", "]", "}"]),
    st.integers(1, 40) | st.just(300),  # 300 are too deep for the parser
)
PIECES = [*"[]{}:,&*!<>|-?#%@\"' \n\t", "---\n", "...\n", "a: ", "<<: ", "*a", "&a ", "\r\n"]
PIECES += [f"{key}:\n  " for key in Params.model_fields] + SPELLINGS
YAMLS = DEEP | st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
FRAMES = ["%YAML 1.1\n---\n{}", "{}\n---\na: 1\n", "\ufeff{}", "--- {}\n...\n", "{}\nx: *a\n"]
FRAMES += ["{}\n<<: {{variant: sgd}}\n", "%YAML 1.2\n---\n{}", "a: &a\n{}", "{}\0"]
BYTES = (
    st.binary(max_size=80)
    | YAMLS.map(str.encode)
    | st.builds(
        lambda at, new: VALID.encode()[:at] + new + VALID.encode()[at + len(new) :],
        st.integers(0, len(VALID)),
        st.binary(min_size=1, max_size=3),
    )
    | st.builds(
        lambda frame, end: frame.format(VALID).replace("\n", end).encode(),
        st.sampled_from(FRAMES),
        st.sampled_from(["\n", "\r\n", "\r", "\x85"]),
    )
    | st.sampled_from(["utf-16", "utf-8-sig", "utf-32", "cp037"]).map(VALID.encode)
    | st.builds(
        lambda key, value: re.sub(rf"\b{key}:.*", lambda _: f"{key}: {value}", VALID).encode(),
        st.sampled_from([*Params.model_fields, "epochs", "lr", "sources", "pad"]),
        YAMLS,
    )
)


@settings(FUZZ, max_examples=100)
@given(BYTES)
def test_any_bytes_are_valid_or_refused(path: Path, content: bytes) -> None:
    refusal(path, content)
