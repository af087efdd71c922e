"""Publish the selected variant's weights, of the first seed, as the registered model."""

from pathlib import Path

from stages.support.atomic import write_bytes
from stages.support.errors import misplaced
from stages.support.params import load_params
from stages.support.tensors import read_tensors


def main(weights: Path, model: Path) -> None:
    """Publish the selected variant's weights, of the first seed, as the registered model.

    Args:
        weights: the file with the weights of the selected variant and the first seed.
        model: the file to write.
    """
    params = load_params()
    _, description = read_tensors(weights)
    trained = description.get("variant"), description.get("seed")
    if trained != (params.variant, params.seeds[0]):
        raise misplaced(
            f"{weights} is of variant {trained[0]} and seed {trained[1]}, "
            f"params.yaml selects {params.variant} and {params.seeds[0]}"
        )
    write_bytes(model, weights.read_bytes())
    print(f"{weights} is now {model}")
