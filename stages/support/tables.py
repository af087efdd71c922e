"""Tables and records as files: CSV and JSON, checked when they are read."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from stages.support.atomic import replacing
from stages.support.cache import damaged
from stages.support.errors import unusable

Row = TypeVar("Row", bound=BaseModel)


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write `rows` under the keys that they have. A float's text reads back as the same float.

    A row without one of the keys, as an older checkpoint may hold, gets an empty cell there.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_table(path: Path, kind: type[Row]) -> list[Row]:
    """Return the rows of a CSV file with a header, each as a `kind`, whose fields are the columns.

    Raises:
        InputError: the file is missing, empty, no table, has wrong columns or values, or comes from
            a damaged object of DVC's cache.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            read = list(csv.DictReader(file, strict=True))
        if any(None in row for row in read):
            raise csv.Error("a row is longer than the header")
        rows = [kind.model_validate_strings(row) for row in read]
    except ValidationError as error:
        raise unusable(path, _first_of(error)) from None
    except FileNotFoundError as error:
        raise unusable(path, error.strerror) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise unusable(path, error) from None
    if not rows:
        raise unusable(path, "no rows")
    # DVC does not check what it takes from its cache, and a damaged table may still be a table.
    if damaged(path):
        raise unusable(path, "damaged")
    return rows


def read_record(path: Path, kind: type[Row]) -> Row:
    """Return the content of a JSON file as a `kind`. These files are in git, not in DVC's cache.

    Raises:
        InputError: the file is missing, is not JSON, or has wrong keys or values.
    """
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise unusable(path, _first_of(error)) from None
    except FileNotFoundError as error:
        raise unusable(path, error.strerror) from None


def _first_of(error: ValidationError) -> str:
    """Return the first thing that is wrong: where, and what."""
    first = error.errors()[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
