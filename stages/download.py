"""Get the data set's four IDX files, decompressed and verified."""

from pathlib import Path

from stages.lib.command import run
from stages.lib.files import replacing_folder
from stages.lib.params import load_params
from stages.lib.sources import fetch


def main(raw: Path) -> None:
    """Get the data set's four IDX files, decompressed and verified."""
    params = load_params()
    source, contents = fetch(params.datasets[params.dataset])
    with replacing_folder(raw) as folder:
        for file, content in contents.items():
            (folder / file).write_bytes(content)
    print(f"{params.dataset} from {source}")


if __name__ == "__main__":
    run(main)
