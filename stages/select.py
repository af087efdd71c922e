"""Put the selected variant's results where `dvc metrics diff` compares them."""

from pathlib import Path

from stages.lib.command import InputError, run
from stages.lib.files import replacing
from stages.lib.params import load_params
from stages.lib.results import read_rows


def main(summary: Path, curves: Path, selected_summary: Path, selected_curves: Path) -> None:
    """Copy summary and curves of the selected variant."""
    variant = load_params().variant
    if (found := read_rows(curves, ["epoch"])[0].get("variant")) != variant:
        raise InputError(
            f"{curves} is of variant {found}, params.yaml selects {variant}; run `dvc repro`"
        )
    for source, target in ((summary, selected_summary), (curves, selected_curves)):
        content = source.read_bytes()
        with replacing(target) as temporary:
            temporary.write_bytes(content)
    print(f"selected {variant}")


if __name__ == "__main__":
    run(main)
