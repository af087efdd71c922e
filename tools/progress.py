"""Print how far each training is, from the checkpoints, which grow while it runs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from stages.learning.split import load_split
from stages.reporting.summary import plus_minus
from stages.support.errors import InputError, told
from stages.support.params import load_params

SUBSET = Path("data/subset")


def main() -> None:
    """Print a line per variant and seed: the epochs saved, and the test accuracy after each."""
    # Not imported from stages.support.checkpoints, since that imports torch, which takes seconds.
    checkpoints = Path(".checkpoints")
    params = load_params()
    width = max(map(len, params.variants))
    for variant in params.variants:
        for seed in params.seeds:
            checkpoint = checkpoints / variant / f"{seed}.safetensors"
            rows = saved_rows(checkpoint, params.training(variant, seed))
            after = " ".join(f"{row['test_accuracy']:.4f}" for row in rows)
            done = f"{len(rows):2} of {params.train.epochs} epochs"
            print(f"{variant:{width}}  seed {seed}  {done}  {after}".rstrip())
    if SUBSET.exists():
        images = len(load_split(SUBSET, "test").labels)
        widest = f"± {plus_minus([0.5], images):.4f} at most"
        print(f"{widest}: the 95 % binomial interval of an accuracy on {images:,} test images")


def saved_rows(checkpoint: Path, training: Mapping[str, object]) -> list[dict[str, Any]]:
    """Return what a checkpoint of this training has learned, a row per epoch; reads no tensors."""
    if not checkpoint.exists():
        return []
    try:
        with safe_open(checkpoint, "numpy") as file:
            description = json.loads(file.metadata()["description"])
        rows: list[dict[str, Any]] = description["rows"]
        same = training == {key: description["fingerprint"].get(key) for key in training}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{checkpoint} is not a checkpoint ({error}); remove it") from None
    return rows if same else []


if __name__ == "__main__":
    with told():
        main()
