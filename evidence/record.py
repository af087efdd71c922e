"""A replicate's two files: its table, and the record of where the table came from."""

import hashlib
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from stages.learning.history import EpochRow
from stages.support.atomic import write_json
from stages.support.digests import short_sha256
from stages.support.errors import InputError
from stages.support.git import environment_without_git_variables
from stages.support.tables import read_record, read_table, write_table

CHECKOUT = Path(__file__).parents[1]
TABLES = Path("evidence/tables")
REMEDY = (
    "`git checkout evidence/tables` restores what is committed; if it is not, remove the table and "
    "its record, and `make evidence` trains again"
)
# What decides a table, and so has to be as the commit has it.
CODE = ("stages", "evidence/*.py", "params.yaml", "pyproject.toml")


class Record(BaseModel):
    """Where a table came from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    commit: str  # of the checkout
    learning: str  # `learning_digest`
    training: dict[str, Any]  # `Params.training`, the number of epochs, the precision
    images: dict[str, str]  # short SHA-256 of each split's file
    ran_on: dict[str, str | int]  # machine, threads and versions
    table: str = ""  # short SHA-256 of the table, which `write` puts in


def learning_digest() -> str:
    """Return the SHA-256 of stages/learning: each module's path, length and content, by path.

    Hidden files, which editors leave, are no modules.
    """
    digest, folder = hashlib.sha256(), CHECKOUT / "stages/learning"
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        if "/." not in f"/{name}":
            content = path.read_bytes()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def clean_commit() -> str:
    """Return the commit of the checkout.

    Raises:
        InputError: the code differs from the commit, or there is no git repository.
    """
    if changed := checkout_git("status", "--porcelain", "--", *CODE):
        names = ", ".join(line[3:] for line in changed.splitlines())
        raise InputError(f"{names}: not as committed; commit it, or undo the change")
    return checkout_git("rev-parse", "HEAD").strip()


def checkout_git(*arguments: str) -> str:
    """Return what git prints about the checkout, as it is.

    Raises:
        InputError: git failed.
    """
    command = ["git", "-C", str(CHECKOUT), *arguments]
    done = subprocess.run(
        command,
        env=environment_without_git_variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InputError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def write(table: Path, rows: Sequence[Mapping[str, object]], record: Record) -> None:
    """Write a table, and then its record beside it, with the table's digest."""
    write_table(table, rows)
    record = record.model_copy(update={"table": short_sha256(table)})
    write_json(table.with_suffix(".json"), record.model_dump())


def read(table: Path) -> tuple[Record, list[EpochRow]] | None:
    """Return a table with its record; None if one of the two is missing.

    Raises:
        InputError: one is damaged, or they do not belong together.
    """
    if not (table.exists() and table.with_suffix(".json").exists()):
        return None
    try:
        record = read_record(table.with_suffix(".json"), Record)
        if record.table != short_sha256(table):
            raise InputError(f"{table} is not the table that its record describes")
        return record, read_table(table, EpochRow)
    except InputError as error:
        raise InputError(f"{str(error).partition(';')[0]}; {REMEDY}") from None
