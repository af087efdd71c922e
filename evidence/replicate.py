"""Train one variant with one seed, and measure its weights under several BatchNorm statistics.

`python -m evidence.replicate VARIANT SEED` writes evidence/tables/VARIANT-SEED.csv and .json. One
that was interrupted starts again, since a checkpoint would have to hold every batch's statistics.
"""

import argparse
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch

from evidence.batch_statistics import accuracy, batches_now, frozen, moving, watch
from evidence.record import TABLES, Record, clean_commit, learning_digest, read, write
from evidence.statements import EPOCHS, FROZEN, MOVING
from stages.learning.device import set_up_device
from stages.learning.inference import Images, load_images
from stages.learning.loop import make_optimizer, set_seed, train
from stages.learning.split import SPLITS
from stages.learning.weights import untrained
from stages.support import machine
from stages.support.digests import short_sha256
from stages.support.errors import InputError, errors_as_messages
from stages.support.locks import sole_run
from stages.support.params import Params, load_params

TEST_IMAGES = 200  # of each class


def main(
    variant: str,
    seed: int,
    subset: Path = Path("data/subset"),
    tables: Path = TABLES,
    test_images: int = TEST_IMAGES,
) -> None:
    """Train and measure, and write the table and its record.

    Raises:
        InputError: the code is not as committed, there is more than one thread, or no subset.
    """
    if (threads := torch.get_num_threads()) != 1:
        raise InputError(f"one thread a training, not {threads}: set OMP_NUM_THREADS=1")
    files = {name: subset / f"{name}.safetensors" for name in SPLITS}
    if missing := [str(path) for path in files.values() if not path.exists()]:
        raise InputError(f"{', '.join(missing)}: not there; `dvc repro subset` makes it")
    params = load_params()
    if variant not in params.variants:
        raise InputError(f"params.yaml has no variant {variant}, only {', '.join(params.variants)}")
    device = set_up_device("cpu")
    # Made before the training, so that it describes the code that trains.
    record = Record(
        commit=clean_commit(),
        learning=learning_digest(),
        training=description(params, variant, seed) | {"epochs": params.train.epochs},
        images={name: short_sha256(path) for name, path in files.items()},
        ran_on=machine.describe(device),
    )
    splits = {name: load_images(subset, name, device) for name in SPLITS}
    rows = []
    for row in replicate(params, variant, seed, splits, test_images):
        rows.append(row)
        print(f"{variant}, seed {seed}: epoch {row['epoch']} of {params.train.epochs}", flush=True)
    write(tables / f"{variant}-{seed}.csv", rows, record)


def description(params: Params, variant: str, seed: int) -> dict[str, object]:
    """Return what identifies the training. The protocol asks for float32."""
    return params.training(variant, seed) | {"precision": "fp32"}


def replicate(
    params: Params, variant: str, seed: int, splits: dict[str, Images], test_images: int
) -> Iterator[dict[str, object]]:
    """Train as the stage `train` does, and yield a row after each epoch.

    A row is the stage's, and the test accuracy of the same weights under each of the statistics, on
    the first `test_images` of each class.
    """
    measured_on = first_of_each_class(splits["test"], test_images)
    set_seed(seed, epoch=0)
    network = untrained(description(params, variant, seed))
    optimizer = make_optimizer(network, params.variants[variant])
    # Everything is measured on a copy, so that the training cannot notice. The copy is made before
    # the hooks, which it would share.
    copy = deepcopy(network)
    gone_by: list[torch.Tensor] = []
    watch(network, gone_by.append)
    epochs, batch_size = range(1, params.train.epochs + 1), params.train.batch_size
    for row in train(network, optimizer, splits, seed, epochs, batch_size):
        copy.load_state_dict(network.state_dict())
        # A generator of its own. The training's are seeded from (seed, epoch).
        entropy = np.random.SeedSequence((seed, row.epoch, 1)).generate_state(1, np.uint64)[0]
        order = torch.Generator().manual_seed(int(entropy))
        now = batches_now(copy, splits["train"].images, batch_size, order)
        statistics = {name: moving(gone_by, momentum) for name, momentum in MOVING.items()}
        statistics |= {name: frozen(now, count) for name, count in FROZEN.items()}
        yield row.model_dump() | {
            name: accuracy(copy, values, measured_on) for name, values in statistics.items()
        }


def first_of_each_class(split: Images, count: int) -> Images:
    """Return the first `count` images of each class.

    Raises:
        InputError: a class has fewer.
    """
    labels = sorted(set(split.labels.tolist()))
    positions = [torch.nonzero(split.labels == label)[:, 0] for label in labels]
    if (fewest := min(map(len, positions))) < count:
        raise InputError(f"a class has only {fewest} test images, and {count} are needed")
    chosen = torch.cat([of_class[:count] for of_class in positions])
    return Images(split.images[chosen], split.labels[chosen])


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m evidence.replicate", description=__doc__)
    parser.add_argument("variant")
    parser.add_argument("seed", type=int)
    options = parser.parse_args()
    name = f"{options.variant}-{options.seed}"
    with errors_as_messages(), sole_run(f"replicate-{name}"):
        if (found := load_params().train.epochs) != EPOCHS:
            raise InputError(f"params.yaml: train.epochs: {found}: the protocol has {EPOCHS}")
        if read(TABLES / f"{name}.csv"):  # Another process may have held the lock to make it.
            print(f"{TABLES}/{name}.csv is there: remove it and its record to train again")
        else:
            main(options.variant, options.seed)
