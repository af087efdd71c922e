"""Publish the selected variant's weights, of the first seed, as the registered model."""

import json
from pathlib import Path
from shutil import copyfile

from safetensors import SafetensorError, safe_open

from stages.lib.command import InputError, run
from stages.lib.files import replacing
from stages.lib.params import load_params


def main(weights: Path, model: Path) -> None:
    """Copy the weights of the selected variant and the first seed to the registered model."""
    params = load_params()
    try:
        with safe_open(weights, "numpy") as file:
            description = json.loads(file.metadata()["description"])
            trained = description["variant"], description["seed"]
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise InputError(
            f"{weights}: not weights of ours ({error}); `dvc repro` makes them anew"
        ) from None
    if trained != (params.variant, params.seeds[0]):
        raise InputError(
            f"{weights} is of variant {trained[0]} and seed {trained[1]}, "
            f"params.yaml selects {params.variant} and {params.seeds[0]}; "
            "`dvc checkout --force` restores them, or `dvc repro` trains again"
        )
    with replacing(model) as temporary:
        copyfile(weights, temporary)
    print(f"{weights} is now {model}")


if __name__ == "__main__":
    run(main)
