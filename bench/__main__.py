"""Time the training beside other ways to do the same."""

import argparse
from datetime import date
from pathlib import Path

import torch

from bench import epoch
from bench.contenders import DEVICE
from bench.report import draw, tables
from bench.workers import sample_images
from stages.support import machine
from stages.support.atomic import write_json
from stages.support.errors import errors_as_messages


def main() -> None:
    """Measure and print; on request, write bench/results.json and its chart."""
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    parser.add_argument(
        "--images",
        type=int,
        default=epoch.IMAGES,
        help=f"that stand for {epoch.IMAGES}; at least 4",
    )
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--road", action="store_true", help="measure every step to the pipeline")
    parser.add_argument(
        "--memory", action="store_true", help=f"measure memory with {epoch.IMAGES} images, too"
    )
    parser.add_argument(
        "--write", action="store_true", help="bench/results.json and its chart, which the docs show"
    )
    options = parser.parse_args()
    images, rounds = options.images, options.rounds
    if images < 4 or rounds < 1:
        parser.error("--images must be at least 4, --rounds at least 1")
    # An error about the subset belongs here, not into every worker.
    sample_images(max(images, epoch.IMAGES) if options.memory else images)

    fastest = f"pipeline {epoch.precisions()[-1]}"
    results = {
        "date": str(date.today()),
        "images": images,
        "rounds": rounds,
        "where": (
            "{processor} ({machine}), {cores} cores, {threads} threads, device {device}, {system}, "
            "Python {python}, torch {torch}"
        ).format_map(machine.describe(DEVICE)),
        **epoch.compare(images, rounds),
        "growth": epoch.growth(fastest, images, rounds),
    }
    if torch.get_num_threads() > 1:
        results["side_by_side"] = epoch.side_by_side(fastest, images, rounds)
    if options.road:
        results["road"] = epoch.road(images, rounds)
    if options.memory:
        results["whole_epoch_memory_bytes"] = epoch.whole_epoch_memory([*results["contenders"]])
    print(tables(results))
    if options.write:
        write_json(Path("bench/results.json"), results)
        draw(results).savefig("bench/results.png", dpi=150)


if __name__ == "__main__":
    with errors_as_messages():
        main()
