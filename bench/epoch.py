"""What is measured of an epoch: its time, its operations, its memory, and how it grows."""

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.contenders import DEVICE, PEAK_OPERATIONS, ROAD, SIDE, plain_network
from bench.workers import WORK, ask, in_turns, running, seconds
from stages.learning.device import choose_precision
from stages.support.params import Precision

IMAGES = 6000  # of each split, in an epoch of the real pipeline: trained on one, evaluated on both


def precisions() -> list[Precision]:
    """Return float32 and, where the hardware multiplies bfloat16, bfloat16."""
    return ["fp32", "bf16"] if choose_precision("auto", DEVICE) == "bf16" else ["fp32"]


def compare(images: int, rounds: int) -> dict[str, Any]:
    """Measure the notebook's loop, a DataLoader's and the pipeline's, and the machine's peak."""
    names = ["notebook", "DataLoader", *(f"pipeline {precision}" for precision in precisions())]
    measured = epochs([*names, *(f"peak {name}" for name in precisions())], images, rounds)
    products = PEAK_OPERATIONS * IMAGES / images  # as the seconds are extrapolated
    peaks = {name: products / measured[f"peak {name}"]["train_seconds"] for name in precisions()}
    train, evaluate = operations()
    for name in names:
        row = measured[name]
        row["ratio"] = measured["notebook"]["epoch_seconds"] / row["epoch_seconds"]
        row["flops"] = (train + 2 * evaluate) * IMAGES / row["epoch_seconds"]
        row["fraction_of_peak"] = row["flops"] / peaks["bf16" if "bf16" in name else "fp32"]
    return {"peak_flops": peaks, "contenders": {name: measured[name] for name in names}}


def road(images: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measure the steps from the notebook's loop to the pipeline, each beside the one before it."""
    pipelines = [f"pipeline {precision}" for precision in precisions()]
    measured = epochs(["notebook", *ROAD, *pipelines], images, rounds)
    before = measured["notebook"]
    for row in measured.values():
        row["ratio"] = before["epoch_seconds"] / row["epoch_seconds"]
        before = row
    return measured


def epochs(names: Sequence[str], images: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return of each contender the median seconds of an epoch, and the most bytes held.

    They take turns. The seconds are extrapolated to a whole epoch if these are fewer images.
    """
    with running(*((name, images, torch.get_num_threads()) for name in names)) as workers:
        medians = in_turns(workers, rounds)
        memory = [ask("memory", worker)[0] for worker in workers]
    results = {}
    for name, median, held in zip(names, medians, memory, strict=True):
        train, evaluate = median[0] * IMAGES / images, median[1] * 2 * IMAGES / images
        results[name] = {
            "train_seconds": train,
            "evaluate_seconds": evaluate,
            "epoch_seconds": train + evaluate,
            "peak_memory_bytes": held,
        }
    return results


def operations() -> tuple[int, int]:
    """Return the floating-point operations of the notebook's network for an image: train, evaluate.

    As PyTorch counts them: of convolutions and linear layers; a multiply-add is two.
    """
    with torch.device("meta"):  # shapes without numbers
        network, image = plain_network(), torch.zeros(1, 1, SIDE, SIDE)
    with FlopCounterMode(display=False) as forward:
        logits = network.eval()(image)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    evaluate = forward.get_total_flops()
    return evaluate + backward.get_total_flops(), evaluate


def growth(name: str, images: int, rounds: int) -> dict[str, float]:
    """Time training and one evaluation of a quarter, a half and all of the images, in turns."""
    sizes = [images // 4, images // 2, images]
    with running(*((name, size, torch.get_num_threads()) for size in sizes)) as workers:
        medians = in_turns(workers, rounds)
    return {str(size): sum(median) for size, median in zip(sizes, medians, strict=True)}


def side_by_side(name: str, images: int, rounds: int) -> dict[str, float]:
    """Time two trainings with half the threads each against one after the other with all."""
    threads = torch.get_num_threads()
    half = (name, images, threads // 2)
    apart, together = [], []
    with running((name, images, threads), half, half) as (alone, *pair):
        for _ in range(rounds):
            apart.append(2 * seconds(lambda: [ask(work, alone) for work in WORK]))
            together.append(seconds(lambda: [ask(work, *pair) for work in WORK]))
    one_after_the_other, both = statistics.median(apart), statistics.median(together)
    return {
        "one_after_the_other_seconds": one_after_the_other,
        "side_by_side_seconds": both,
        "ratio": one_after_the_other / both,
    }


def whole_epoch_memory(names: Sequence[str]) -> dict[str, float]:
    """Return the most memory that each holds in an epoch of all images, in bytes.

    Under "before" stands what a process held before there was a network.
    """
    held = {}
    for name in names:
        with running((name, IMAGES, torch.get_num_threads())) as (worker,):
            [held[name]], [held["before"]] = ask("memory", worker), ask("before", worker)
    return held
