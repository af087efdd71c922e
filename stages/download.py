"""Get the data set's four IDX files, decompressed and verified."""

from pathlib import Path

from stages.learning.idx import parse
from stages.support.atomic import replacing_folder
from stages.support.params import load_params
from stages.support.sources import fetch


def main(raw: Path) -> None:
    """Get the data set's four IDX files, decompressed and verified.

    Args:
        raw: the folder to write, with the four files.
    """
    params = load_params()
    source, contents = fetch(params.datasets[params.dataset], check=parse)
    with replacing_folder(raw) as folder:
        for file, content in contents.items():
            (folder / file).write_bytes(content)
    print(f"{params.dataset} from {source}")
