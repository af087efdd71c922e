"""Print how far each training is: from its checkpoint, which grows, or from its results."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from stages.learning.history import EpochRow
from stages.learning.split import load_split
from stages.reporting.summary import plus_minus
from stages.support.errors import InputError, errors_as_messages
from stages.support.params import load_params
from stages.support.tables import read_table

SUBSET = Path("data/subset")


def main() -> None:
    """Print a line per variant and seed: the epochs so far, and the test accuracy after each."""
    params = load_params()
    width, total = max(map(len, params.variants)), 0
    for variant in params.variants:
        for seed in params.seeds:
            curve = test_accuracies(variant, seed, params.training(variant, seed))
            curve = curve[: params.train.epochs]  # a longer training begins with this one
            total += len(curve)
            done = f"{len(curve):2} of {params.train.epochs} epochs"
            after = " ".join(f"{accuracy:.4f}" for accuracy in curve)
            print(f"{variant:{width}}  seed {seed}  {done}  {after}".rstrip())
    if not total:
        print("nothing is trained in this checkout yet: `make repro` trains")
    if SUBSET.exists():
        images = len(load_split(SUBSET, "test").labels)
        widest = f"± {plus_minus([0.5], images):.4f} at most"
        print(f"{widest}: the 95 % binomial interval of an accuracy on {images:,} test images")


def test_accuracies(variant: str, seed: int, training: Mapping[str, object]) -> list[float]:
    """Return the test accuracy after each epoch of this training; empty if there is none yet.

    After `dvc pull` or `dvc exp apply` the results may have more epochs than the checkpoint.
    """
    growing: list[float] = []
    finished: list[float] = []
    # As `checkpoint_path` says, whose module would import torch.
    saved = description(Path(f".checkpoints/{variant}/{seed}.safetensors"))
    if saved and is_of(training, saved.get("fingerprint", {})):
        growing = [row["test_accuracy"] for row in saved["rows"]]
    history = Path(f"metrics/history/{variant}/{seed}.csv")
    weights = description(Path(f"models/{variant}/{seed}.safetensors"))
    if weights and is_of(training, weights) and history.exists():
        finished = [row.test_accuracy for row in read_table(history, EpochRow)]
    return max(growing, finished, key=len)


def is_of(training: Mapping[str, object], described: Mapping[str, object]) -> bool:
    """Tell whether a description is of this training."""
    return training == {key: described.get(key) for key in training}


def description(path: Path) -> dict[str, Any]:
    """Return what a file of tensors says of itself, without reading tensors; empty if missing.

    Raises:
        InputError: the file is of another kind.
    """
    if not path.exists():
        return {}
    try:
        with safe_open(path, "numpy") as file:
            return dict(json.loads(file.metadata()["description"]))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not a checkpoint or weights ({error}); remove it") from None


if __name__ == "__main__":
    argparse.ArgumentParser("python -m tools.progress", description=__doc__).parse_args()
    with errors_as_messages():
        main()
