"""Put the selected variant's results where `dvc metrics diff` compares them."""

from pathlib import Path

import yaml

from stages.reporting.tables import CurveRow
from stages.support.atomic import write_bytes
from stages.support.errors import unusable
from stages.support.params import load_params
from stages.support.tables import read_table


def main(
    summary: Path,
    curves: Path,
    selected_summary: Path,
    selected_curves: Path,
    selected_variant: Path,
) -> None:
    """Put the selected variant's results where `dvc metrics diff` compares them.

    Args:
        summary: the JSON file with the variant's metrics.
        curves: the table of the variant's epochs.
        selected_summary: the file to write, for `dvc metrics diff`.
        selected_curves: the file to write, for `dvc plots diff`.
        selected_variant: the YAML file to write, with the variant's parameters under the one key
            `selected`, for `dvc params diff`; `dvc exp show --drop selected` hides them.
    """
    params = load_params()
    found = read_table(curves, CurveRow)[0].variant
    if found != params.variant:
        raise unusable(curves, f"is of variant {found}, params.yaml selects {params.variant}")
    chosen = params.variants[params.variant].model_dump(exclude_none=True)
    contents = {
        selected_summary: summary.read_bytes(),
        selected_curves: curves.read_bytes(),
        selected_variant: yaml.safe_dump({"selected": chosen}, sort_keys=False).encode(),
    }
    for path, content in contents.items():
        write_bytes(path, content)
    print(f"selected {params.variant}")
