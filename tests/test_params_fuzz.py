"""params.yaml, whatever is written in it: what DVC reads there, or a line for each wrong value."""

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError

from stages.support.errors import InputError
from stages.support.params import Params, load_params

pytestmark = pytest.mark.filterwarnings("ignore::ruamel.yaml.error.ReusedAnchorWarning")
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
    r"|Input should|Value error|Dictionary|tuple|validation|pydantic|type=|\[key\]"
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "params.yaml"


def require_sense(path: Path, content: bytes) -> None:
    """Require the content to mean what it means to DVC, or to be refused in fit lines."""
    path.write_bytes(content)
    read_by_dvc: object
    try:
        read_by_dvc = YAML(typ="safe").load(path.read_text("utf-8"))
    except Exception as error:  # DVC's parser raises many kinds
        read_by_dvc = error
    try:
        params = load_params(path)
    except InputError as error:
        assert len(str(error)) < 10_000
        for line in str(error).split("\n"):
            assert line.startswith((f"{path}: ", f"{path} is not YAML: "))
            assert not UNFIT.search(line), line
            assert len(line) < 1_000
        with pytest.raises(ValueError):  # what DVC reads is as wrong
            Params.model_validate(read_by_dvc)
    else:
        with pytest.raises(ValidationError, match="frozen"):
            params.train.epochs = 1
        # A key that is there twice is refused by DVC itself.
        if not isinstance(read_by_dvc, DuplicateKeyError):
            assert params.model_dump(mode="json", exclude_unset=True) == read_by_dvc


SPELLINGS = re.split(
    "; ",
    "1e-05; 1E5; .5; -.5; 5.; 1_0; 1_; 0_8; ._; .inf; .nan; 1e999; 0x1F; 0o10; 0b10; 010; 09; -0; "
    "1:30; 1:30.5; yes; off; TRUE; null; ~; =; <<; []; {}; 2020-01-01; 2020-13-01; *x; &x [*x]; "
    "&x {a: *x}; |; >-; !x; !x 1; ?; -; :; %; @; ''; !!int x; !!int 1; !!int [1]; !!float x; "
    "!!float 1; !!bool no; !!bool x; !!null x; !!str 1; !!set {a}; !!omap [a: 1]; !!pairs [a]; "
    "!!binary a; !!binary é; !!timestamp x; !!python/name:os.getcwd; {<<: {a: 1}}; [1]; {1: [x]}; "
    '"\\ud800"; "\\UFFFFFFFF"; "\\0"; "\\e"; "\\L"; "a\\nb"; "a\\xzz"; \ufeff; \x85',
)
LONG = ["9" * 5_000, "0x" + "9" * 5_000, "x" * 5_000, "!" + "x" * 5_000]
SPELT = [
    *(r"(?<=epochs: )10", r"(?<=lr: )0.01", r"(?<=- )M", r"torchvision:MNIST", r"65a50c\w+"),
    *(r"(?<=optimizer: )sgd", r"epochs(?=:)", r"(?<=  )sgd(?=:)", r"t10k[^:]+"),
]


@pytest.mark.parametrize("spelling", [*SPELLINGS, *LONG], ids=lambda text: ascii(text)[:20])
def test_a_spelling_means_what_it_means_to_dvc_or_is_refused(path: Path, spelling: str) -> None:
    for place in SPELT:
        content, count = re.subn(place, lambda _: spelling, VALID)
        assert count
        require_sense(path, content.encode())


PIECES = [*"[]{}:,&*!<>|-?#%@\"' \n\t", "---\n", "...\n", "a: ", "<<: ", "*a", "&a ", "\r\n", "\0"]
DEEP = [start * 300 for start in ("[", "{a: ", "- ", "? ", "&a [")]
TEXTS = st.lists(st.sampled_from([*PIECES, *SPELLINGS, *DEEP]), max_size=6).map("".join)
BYTES = (
    st.binary(max_size=80)
    | TEXTS.map(str.encode)
    | st.sampled_from(["utf-16", "utf-8-sig", "utf-32", "cp037"]).map(VALID.encode)
    | st.builds(
        lambda start, cut, new: VALID.encode()[:start] + new + VALID.encode()[start + cut :],
        st.integers(0, len(VALID)),
        st.integers(0, 9),
        st.binary(max_size=3) | TEXTS.map(str.encode),
    )
)


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(BYTES)
def test_any_bytes_are_valid_or_refused(path: Path, content: bytes) -> None:
    require_sense(path, content)
