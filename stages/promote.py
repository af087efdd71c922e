"""Publish the selected variant's weights, of the first seed, as the registered model."""

from pathlib import Path

from stages.lib.command import InputError, run
from stages.lib.files import replacing
from stages.lib.params import load_params
from stages.lib.tensorfile import read_tensors


def main(weights: Path, model: Path) -> None:
    """Copy the weights of the selected variant and the first seed to the registered model."""
    params = load_params()
    _, description = read_tensors(weights)
    trained = description.get("variant"), description.get("seed")
    if trained != (params.variant, params.seeds[0]):
        raise InputError(
            f"{weights} is of variant {trained[0]} and seed {trained[1]}, "
            f"params.yaml selects {params.variant} and {params.seeds[0]}; "
            "`dvc checkout --force` restores them, or `dvc repro` trains again"
        )
    content = weights.read_bytes()
    with replacing(model) as temporary:
        temporary.write_bytes(content)
    print(f"{weights} is now {model}")


if __name__ == "__main__":
    run(main)
