"""Print how far each training is, from the checkpoints, which grow while it runs."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from stages.lib.command import InputError, run
from stages.lib.params import load_params
from stages.lib.subset import load_split
from stages.lib.summary import plus_minus

CHECKPOINTS = Path(".checkpoints")  # as in stages.train, which takes seconds to import
SUBSET = Path("data/subset")


def main() -> None:
    """Print a line per variant and seed: the epochs saved, the test accuracy after each."""
    params = load_params()
    width = max(map(len, params.variants))
    for variant in params.variants:
        for seed in params.seeds:
            wanted = {
                **params.variants[variant].model_dump(),
                **params.data.model_dump(mode="json"),
            }
            wanted |= {"dataset": params.dataset, "batch_size": params.train.batch_size}
            rows = read_rows(CHECKPOINTS / variant / f"{seed}.safetensors", wanted)
            after = " ".join(f"{row['test_accuracy']:.4f}" for row in rows)
            done = f"{len(rows):2} of {params.train.epochs} epochs"
            print(f"{variant:{width}}  seed {seed}  {done}  {after}".rstrip())
    if SUBSET.exists():
        images = len(load_split(SUBSET, "test").labels)
        widest = f"± {plus_minus([0.5], images):.4f} at most"
        print(f"{widest}: the 95 % binomial interval of an accuracy on {images:,} test images")


def read_rows(checkpoint: Path, wanted: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what was learned with the parameters `wanted`, a row per epoch; reads no tensors."""
    if not checkpoint.exists():
        return []
    try:
        with safe_open(checkpoint, "numpy") as file:
            description = json.loads(file.metadata()["description"])
        rows: list[dict[str, Any]] = description["rows"]
        same = wanted == {key: description["fingerprint"].get(key) for key in wanted}
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{checkpoint} is not a checkpoint ({error}); remove it") from None
    return rows if same else []


if __name__ == "__main__":
    run(main)
