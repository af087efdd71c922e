"""What a cold run of the pipeline costs beside its epochs and the passes of `evaluate`."""

import argparse
import tempfile
import time
from pathlib import Path

from bench.pipeline import RAW, command_seconds
from stages.evaluate import BATCH
from stages.learning.device import set_up_device
from stages.learning.inference import load_images, predict, predict_with_batch_statistics
from stages.learning.weights import load_network
from stages.support.errors import InputError, errors_as_messages
from stages.support.params import load_params
from stages.support.tables import read_table
from tools.copies import copy_checkout, plain_params, write_params
from tools.table import Timing

EPOCHS = 2  # The rest of a run does not depend on their number.


def main() -> None:
    """Run the whole pipeline in a copy of this checkout, and print what the rest of it costs."""
    if not RAW.exists():
        raise InputError(f"{RAW} is not there; `dvc repro download` makes it")
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        copy_checkout(Path.cwd(), copy)
        params = plain_params(copy)
        wanted = params["train"]["epochs"]
        params["train"]["epochs"] = EPOCHS
        params["datasets"][params["dataset"]]["sources"] = [str(RAW.absolute())]
        write_params(copy, params)
        whole = command_seconds(copy, "dvc", "repro")
        epochs = trained_seconds(copy / "metrics/timing")
        passes = evaluated_seconds(copy)
    rest = whole - epochs - passes
    share = rest / (rest + passes + epochs / EPOCHS * wanted)
    print(
        f"`dvc repro` of everything with {EPOCHS} epochs: {whole:.0f} s, of which epochs "
        f"{epochs:.0f} s, the passes of `evaluate` {passes:.1f} s, and the rest {rest:.1f} s. "
        f"Of a run with {wanted} epochs the rest is {share:.1%}."
    )


def trained_seconds(timings: Path) -> float:
    """Return how long all epochs took together."""
    tables = timings.glob("*/*.csv")
    return sum(row.seconds for table in tables for row in read_table(table, Timing))


def evaluated_seconds(checkout: Path) -> float:
    """Return how long the arithmetic of `evaluate` takes for all saved weights."""
    device = set_up_device(load_params().train.device)
    test = load_images(checkout / "data/subset", "test", device)
    total = 0.0
    for weights in checkout.glob("models/*/*.safetensors"):
        network = load_network(weights).to(device)
        started = time.perf_counter()
        predict(network, test.images)
        predict_with_batch_statistics(network, test.images, BATCH)
        total += time.perf_counter() - started
    return total


if __name__ == "__main__":
    argparse.ArgumentParser("python -m bench.cold", description=__doc__).parse_args()
    with errors_as_messages():
        main()
