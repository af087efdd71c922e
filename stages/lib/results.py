"""What the stages learn from one another: reading it, and refusing what does not belong."""

import csv
import json
from collections.abc import Iterable
from pathlib import Path

from stages.lib.command import InputError
from stages.lib.files import Row, replacing


def read_rows(path: Path, numbers: Iterable[str]) -> list[Row]:
    """Return the rows of a CSV file with a header; a number is one, except as a variant's name.

    Args:
        path: of the file.
        numbers: columns that must be there and hold nothing else.

    Raises:
        InputError: the file is missing, empty or not such a table.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows: list[Row] = [
                {key: text if key == "variant" else _value(text) for key, text in row.items()}
                for row in csv.DictReader(file, strict=True)
            ]
    except (FileNotFoundError, UnicodeDecodeError, csv.Error, TypeError) as error:
        raise InputError(f"{path}: {error}; `dvc repro` makes it anew") from None
    if not rows:
        raise InputError(f"{path} has no rows; `dvc repro` makes it anew")
    for column in numbers:
        if any(isinstance(row.get(column, ""), str) for row in rows):
            raise InputError(f"{path} has no numbers in column {column}; `dvc repro` makes it anew")
    return rows


def _value(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON; a number that JSON lacks, such as NaN, is a ValueError."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def require_exactly(folder: Path, names: Iterable[str], remedy: str) -> None:
    """Check that `folder` holds the files `names` and no others, `.tmp` leftovers aside.

    DVC neither removes the outputs of a seed or a variant that left params.yaml nor minds them,
    so who reads a whole folder must.

    Args:
        folder: where.
        names: of the files that params.yaml asks for.
        remedy: for files that it does not ask for.

    Raises:
        InputError: a file is missing, or one is there that params.yaml does not ask for.
    """
    wanted = set(names)
    found = {file.name for file in folder.glob("*") if file.suffix != ".tmp"}
    if missing := sorted(wanted - found):
        raise InputError(
            f"{folder}: {', '.join(missing)} missing; `dvc repro` makes what is missing"
        )
    if strays := sorted(found - wanted):
        raise InputError(
            f"{folder}: {', '.join(strays)} belongs to nothing in params.yaml; {remedy}"
        )
