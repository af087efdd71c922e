"""Results of variants and seeds that params.yaml no longer names."""

import re
from collections.abc import Iterable
from pathlib import Path

from stages.support.cache import cache_object, md5_of
from stages.support.git import git
from stages.support.params import NAME

SEED, VARIANT = r"\d+", NAME  # patterns of the names of results in a folder


def remove_leftovers(folder: Path, pattern: str, suffix: str, named: Iterable[object]) -> None:
    """Remove the results in a folder that belong to nothing in params.yaml, and say so.

    DVC leaves the files of a deleted seed or variant in place, and counts them as part of the
    folder. A file is removed only if its bytes can be had again, from git or from DVC's cache. Any
    other stays where it is, is named, and is read by nothing. A file whose name is not that of a
    result stays too, and is not mentioned.

    Args:
        folder: with a result for each seed, or for each variant.
        pattern: a regular expression for the names of results, without their suffix.
        suffix: of the results.
        named: the seeds or variants that params.yaml has.
    """
    wanted = {f"{name}{suffix}" for name in named}
    found = {file.name: file for file in folder.glob("*") if file.is_file()}
    for name in sorted(found.keys() - wanted):
        if not re.fullmatch(pattern + re.escape(suffix), name):
            continue
        if _is_in_git(found[name]) or _is_in_dvcs_cache(found[name]):
            found[name].unlink()
            print(f"{found[name]}: removed, params.yaml no longer names it", flush=True)
        else:
            print(
                f"{found[name]}: ignored, params.yaml does not name it; left there, since neither "
                "git nor DVC's cache has it",
                flush=True,
            )


def _is_in_git(file: Path) -> bool:
    """Tell whether the last commit has the file as it is."""
    committed = git("rev-parse", "--verify", "--quiet", f"HEAD:./{file.as_posix()}")
    return committed != "" and committed == git("hash-object", "--", str(file))


def _is_in_dvcs_cache(file: Path) -> bool:
    """Tell whether DVC's cache has the file as it is: an object may be damaged."""
    md5 = md5_of(file)
    cached = cache_object(md5)
    return cached is not None and md5_of(cached) == md5
