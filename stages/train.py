"""Train one variant with one seed, from where an earlier run of it ended."""

import time
from importlib.metadata import version
from pathlib import Path

from stages.learning.device import choose_precision, require_pinned_versions, set_up_device
from stages.learning.history import EpochRow
from stages.learning.inference import load_images
from stages.learning.loop import make_optimizer, set_seed, train
from stages.learning.split import SPLITS
from stages.learning.weights import save_weights, untrained
from stages.support import checkpoints, machine
from stages.support.digests import code_at_start, short_sha256
from stages.support.errors import InputError
from stages.support.params import Params, Precision, load_params
from stages.support.tables import write_table

DECIDING = ("stages/train.py", "stages/learning/")  # code, as dvc.yaml names it


def main(
    variant: str,
    seed: int,
    subset: Path,
    weights: Path,
    history: Path,
    timing: Path,
    costs_between_saves: float = 20,
) -> None:
    """Train one variant with one seed, from where an earlier run of it ended.

    Args:
        variant: its name in params.yaml.
        seed: one of those in params.yaml.
        subset: the folder with both splits.
        weights: the file to write, with the weights after the last epoch.
        history: the table to write, of what was learned in each epoch.
        timing: the table to write, of how long each epoch took and where it ran.
        costs_between_saves: an epoch is saved when the last save lies this many times its own cost
            back, so 20 bounds the time for saving to 5 %; 0 saves every epoch.
    """
    params = load_params_for(variant, seed)
    epochs = params.train.epochs
    device = set_up_device(params.train.device)
    precision = choose_precision(params.train.precision, device)
    # The digests are taken before the images are read, and again at the end, so that a file that is
    # replaced meanwhile is noticed.
    decided_by = fingerprint(params, variant, seed, device.type, precision, subset)
    splits = {name: load_images(subset, name, device) for name in SPLITS}

    set_seed(seed, epoch=0)
    description = params.training(variant, seed) | {"precision": precision}
    network = untrained(description).to(device)
    optimizer = make_optimizer(network, params.variants[variant])
    ran_on = machine.describe(device) | {"precision": precision}
    count = sum(parameter.numel() for parameter in network.parameters())
    print(
        f"{variant}, seed {seed}: {count:,} parameters, {precision} on {ran_on['device']}",
        flush=True,
    )

    path = checkpoints.checkpoint_path(variant, seed)
    progress = checkpoints.resume(path, decided_by, ran_on, epochs, network, optimizer)
    remaining = range(len(progress.rows) + 1, epochs + 1)
    started = finished = time.perf_counter()
    with checkpoints.saving(
        path, decided_by, epochs, network, optimizer, costs_between_saves
    ) as after_epoch:
        for row in train(network, optimizer, splits, seed, remaining, params.train.batch_size):
            seconds, finished = time.perf_counter() - finished, time.perf_counter()
            progress.rows.append(row.model_dump())
            progress.timings.append({"epoch": row.epoch, "seconds": round(seconds, 3), **ran_on})
            rate = (finished - started) / (row.epoch - remaining.start + 1)
            after_epoch(progress, in_words(row, epochs, seconds, rate * (epochs - row.epoch)))

    # DVC records the parameters and the pin as it finds them after the run. Parameters that do not
    # concern this training may have changed.
    require_pinned_versions()
    before = {**decided_by, **params.train.model_dump()}
    params = load_params_for(variant, seed)
    now = fingerprint(params, variant, seed, device.type, precision, subset)
    if changed := checkpoints.changes(before, {**now, **params.train.model_dump()}):
        raise InputError(
            f"while this trained, {changed}; no outputs written, since DVC would take them for "
            "the new ones: run it again"
        )
    save_weights(weights, network, description | {"epochs": epochs})
    write_table(history, progress.rows)
    write_table(timing, progress.timings)


def load_params_for(variant: str, seed: int) -> Params:
    """Return the parameters, which must name the variant and the seed."""
    params = load_params()
    if variant not in params.variants or seed not in params.seeds:
        raise InputError(
            f"params.yaml names no variant {variant} with seed {seed}: the variants are "
            f"{', '.join(params.variants)}, the seeds {', '.join(map(str, params.seeds))}"
        )
    return params


def fingerprint(
    params: Params, variant: str, seed: int, device: str, precision: Precision, subset: Path
) -> checkpoints.Fingerprint:
    """Return everything that decides the result of a training but its number of epochs."""
    code = {name: sha for name, sha in code_at_start().items() if name.startswith(DECIDING)}
    return {
        **params.training(variant, seed),
        "device type": device,
        "precision": precision,
        "torch": version("torch"),
        **{f"{name} images": short_sha256(subset / f"{name}.safetensors") for name in SPLITS},
        **code,
    }


def in_words(row: EpochRow, epochs: int, seconds: float, left: float) -> str:
    """Return the line about an epoch that took so many seconds, with so many left."""
    return (
        f"Epoch [{row.epoch}/{epochs}], Time elapsed: {seconds:.1f} s, "
        f"train accuracy {row.train_accuracy:.4f}, test accuracy {row.test_accuracy:.4f}, "
        f"{left / 60:.1f} min left"
    )
