"""Train one variant with one seed."""

import time
from pathlib import Path

from stages.lib import machine
from stages.lib.command import InputError, run
from stages.lib.device import prepare
from stages.lib.evaluation import load_tensors
from stages.lib.files import replacing, write_csv
from stages.lib.network import vgg11
from stages.lib.params import load_params
from stages.lib.subset import SPLITS
from stages.lib.training import make_optimizer, set_seed, train
from stages.lib.weights import save_weights


def main(variant: str, seed: int, subset: Path, weights: Path, history: Path, timing: Path) -> None:
    """Train one variant with one seed; params.yaml must name both."""
    params = load_params()
    if variant not in params.variants or seed not in params.seeds:
        raise InputError(
            f"params.yaml names no variant {variant} with seed {seed}: the variants are "
            f"{', '.join(params.variants)}, the seeds {', '.join(map(str, params.seeds))}"
        )
    chosen, epochs, scale = params.variants[variant], params.train.epochs, params.data.scale
    device = prepare(params.train.device)
    splits = {name: load_tensors(subset, name, device) for name in SPLITS}

    set_seed(seed, epoch=0)
    network = vgg11(chosen.activation, chosen.dropout, scale).to(device)
    optimizer = make_optimizer(network, chosen)
    ran_on = machine.describe(device)
    count = sum(parameter.numel() for parameter in network.parameters())
    print(f"{variant}, seed {seed}: {count:,} parameters, on {ran_on['device']}", flush=True)

    rows, timings = [], []
    started = finished = time.perf_counter()
    for row in train(
        network, optimizer, splits, seed, range(1, epochs + 1), params.train.batch_size
    ):
        seconds, finished = time.perf_counter() - finished, time.perf_counter()
        rows.append(row)
        timings.append({"epoch": row["epoch"], "seconds": round(seconds, 3), **ran_on})
        minutes_left = (finished - started) / len(rows) * (epochs - len(rows)) / 60
        print(
            f"Epoch [{row['epoch']}/{epochs}], Time elapsed: {seconds:.1f} s, "
            f"train accuracy {row['train_accuracy']:.4f}, "
            f"test accuracy {row['test_accuracy']:.4f}, {minutes_left:.1f} min left",
            flush=True,
        )

    description = {"variant": variant, "seed": seed, "epochs": epochs, "scale": scale}
    with replacing(weights) as temporary:
        save_weights(temporary, network, description | chosen.model_dump())
    write_csv(history, rows)
    write_csv(timing, timings)


if __name__ == "__main__":
    run(main)
