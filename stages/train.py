"""Train one variant with one seed, from where an earlier run of it ended."""

import time
from importlib.metadata import version
from pathlib import Path

from stages import digest
from stages.lib import checkpoints, machine
from stages.lib.command import InputError, loaded_code, run
from stages.lib.device import choose_precision, prepare
from stages.lib.evaluation import load_tensors
from stages.lib.files import write_csv
from stages.lib.network import vgg11
from stages.lib.params import Params, Precision, load_params
from stages.lib.subset import SPLITS
from stages.lib.training import make_optimizer, set_seed, train
from stages.lib.weights import save_weights

CHECKPOINTS = Path(".checkpoints")  # not an output: DVC removes a stage's outputs before it runs


def main(variant: str, seed: int, subset: Path, weights: Path, history: Path, timing: Path) -> None:
    """Train one variant with one seed; params.yaml must name both."""
    params = read_params(variant, seed)
    chosen, epochs, data = params.variants[variant], params.train.epochs, params.data
    device = prepare(params.train.device)
    precision = choose_precision(params.train.precision, device)
    # Before the images are read, and again at the end: a file replaced meanwhile is noticed.
    fingerprint = decisive(params, variant, seed, device.type, precision, subset)
    splits = {name: load_tensors(subset, name, device) for name in SPLITS}

    set_seed(seed, epoch=0)
    network = vgg11(chosen.activation, chosen.dropout, data.scale, precision).to(device)
    optimizer = make_optimizer(network, chosen)
    ran_on = machine.describe(device) | {"precision": precision}
    count = sum(parameter.numel() for parameter in network.parameters())
    print(
        f"{variant}, seed {seed}: {count:,} parameters, {precision} on {ran_on['device']}",
        flush=True,
    )

    checkpoint = CHECKPOINTS / variant / f"{seed}.safetensors"
    # `dvc exp run --temp` works in a copy of the checkout, within its .dvc.
    above = [folder.parent for folder in Path.cwd().parents if folder.name == ".dvc"]
    candidates = [folder / checkpoint for folder in (Path(), *above)]
    progress = checkpoints.resume(candidates, fingerprint, ran_on, epochs, network, optimizer)
    remaining = range(len(progress.rows) + 1, epochs + 1)
    started = finished = time.perf_counter()
    with checkpoints.saving(checkpoint, fingerprint, network, optimizer) as save:
        for row in train(network, optimizer, splits, seed, remaining, params.train.batch_size):
            seconds, finished = time.perf_counter() - finished, time.perf_counter()
            progress.rows.append(row)
            progress.timings.append({"epoch": row["epoch"], "seconds": round(seconds, 3), **ran_on})
            rate = (finished - started) / (row["epoch"] - remaining.start + 1)
            save(
                progress,
                f"Epoch [{row['epoch']}/{epochs}], Time elapsed: {seconds:.1f} s, "
                f"train accuracy {row['train_accuracy']:.4f}, "
                f"test accuracy {row['test_accuracy']:.4f}, "
                f"{rate * (epochs - row['epoch']) / 60:.1f} min left",
            )

    # DVC records the parameters that it finds after the run for those of the run.
    before = fingerprint | params.train.model_dump()
    params = read_params(variant, seed)  # `run` takes it from here: what else has changed may
    now = (
        decisive(params, variant, seed, device.type, precision, subset) | params.train.model_dump()
    )
    if changed := checkpoints.changes(before, now):
        raise InputError(
            f"while this trained, {changed}; no outputs written, since DVC would take them for "
            "the new ones: run it again"
        )
    description = {"variant": variant, "seed": seed, "epochs": epochs, "dataset": params.dataset}
    description |= data.model_dump(mode="json") | chosen.model_dump() | {"precision": precision}
    save_weights(weights, network, description)
    write_csv(history, progress.rows)
    write_csv(timing, progress.timings)


def read_params(variant: str, seed: int) -> Params:
    """Return the parameters, which must name the variant and the seed."""
    params = load_params()
    if variant not in params.variants or seed not in params.seeds:
        raise InputError(
            f"params.yaml names no variant {variant} with seed {seed}: the variants are "
            f"{', '.join(params.variants)}, the seeds {', '.join(map(str, params.seeds))}"
        )
    return params


def decisive(
    params: Params, variant: str, seed: int, device: str, precision: Precision, subset: Path
) -> checkpoints.Fingerprint:
    """Return everything that decides the result of a training but its number of epochs."""
    return {
        **params.variants[variant].model_dump(),
        **params.data.model_dump(mode="json"),
        "dataset": params.dataset,
        "batch_size": params.train.batch_size,
        "seed": seed,
        "device type": device,
        "precision": precision,
        "torch": version("torch"),
        **{f"{name} images": digest(subset / f"{name}.safetensors") for name in SPLITS},
        **loaded_code(),
    }


if __name__ == "__main__":
    run(main)
