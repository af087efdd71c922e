"""Time the training beside other ways to do the same; see `make help`."""

import argparse
import json
import sys
from datetime import date
from pathlib import Path

import torch

from bench.measure import (
    DEVICE,
    IMAGES,
    compare,
    growth,
    load_images,
    precisions,
    road,
    side_by_side,
    whole_epoch_memory,
)
from bench.report import draw, tables
from stages.lib import machine
from stages.lib.command import InputError

RESULTS = Path("bench/results.json")
CHART = Path("bench/results.png")


def main() -> None:
    """Measure, print, and write bench/results.json and a bar chart."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--images", type=int, default=IMAGES, help=f"that stand for {IMAGES}; at least 4"
    )
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--road", action="store_true", help="measure every step to the pipeline")
    parser.add_argument(
        "--memory", action="store_true", help=f"measure memory with {IMAGES} images, too"
    )
    options = parser.parse_args()
    images, rounds = options.images, options.rounds
    if images < 4 or rounds < 1:
        parser.error("--images must be at least 4, --rounds at least 1")
    # An error here rather than in every process.
    load_images(max(images, IMAGES) if options.memory else images, DEVICE)
    fastest = f"pipeline {precisions()[-1]}"
    place = machine.describe(DEVICE)
    results = {
        "date": str(date.today()),
        "images": images,
        "rounds": rounds,
        "where": (
            f"{place['processor']} ({place['machine']}), {place['cores']} cores, "
            f"{place['threads']} threads, device {place['device']}, {place['system']}, "
            f"Python {place['python']}, torch {place['torch']}"
        ),
        **compare(images, rounds),
        "growth": growth(fastest, images, rounds),
    }
    if torch.get_num_threads() > 1:
        results["side_by_side"] = side_by_side(fastest, images, rounds)
    if options.road:
        results["road"] = road(images, rounds)
    if options.memory:
        results["whole_epoch_memory_bytes"] = whole_epoch_memory([*results["contenders"]])
    print(tables(results))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    draw(results).savefig(CHART, dpi=150)


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
