"""What saving a checkpoint costs a training."""

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path

import torch

from bench.contenders import BATCH, DEVICE, SIDE, in_chunks, pipeline_network
from bench.epoch import IMAGES, precisions
from bench.workers import seconds
from stages.learning.inference import Images
from stages.learning.loop import train_epoch
from stages.support.checkpoints import CHECKPOINTS, Progress, saving
from stages.support.errors import errors_as_messages
from stages.support.params import CLASSES

STEPS = 12  # in a block
TURNS = 7


def main() -> None:
    """Print what saving costs a training with Adam, whose state is the largest.

    Blocks of steps are trained in turns: while a checkpoint is saved, and without.
    """
    count, precision = STEPS * BATCH, precisions()[-1]
    images = torch.randint(0, 256, (count, 1, SIDE, SIDE), dtype=torch.uint8).to(DEVICE)
    split = Images(images, torch.randint(0, CLASSES, (count,)).to(DEVICE))
    network, optimizer = pipeline_network(precision)
    train = partial(train_epoch, network, optimizer, split, BATCH, "block")
    train()  # warms up, and gives the optimizer its state
    saved, unsaved = [], []
    CHECKPOINTS.mkdir(exist_ok=True)  # on the disk that trainings use
    with tempfile.TemporaryDirectory(suffix=".tmp", dir=CHECKPOINTS) as folder:
        path = Path(folder, "checkpoint")
        with saving(path, {}, TURNS, network, optimizer, costs_between_saves=0) as after_epoch:
            for turn in range(TURNS):
                line = f"block {turn + 1} of {TURNS}"
                copying = seconds(partial(after_epoch, Progress(), line))
                saved.append(copying + seconds(train))
                unsaved.append(seconds(train))
        size = path.stat().st_size / 1e6
    with_saving, without = statistics.median(saved), statistics.median(unsaved)
    # An epoch trains one split and evaluates both.
    epoch = (without + 2 * seconds(lambda: in_chunks(network, split))) * IMAGES / count
    print(
        f"A checkpoint of Adam ({size:.0f} MB) saved while {STEPS} steps of {BATCH} images are "
        f"trained in {precision}: {with_saving:.2f} s instead of {without:.2f} s (medians of "
        f"{TURNS}, in turns), which is {(with_saving - without) / epoch:.1%} of an epoch's "
        f"{epoch:.0f} s."
    )


if __name__ == "__main__":
    argparse.ArgumentParser("python -m bench.saving", description=__doc__).parse_args()
    with errors_as_messages():
        main()
