"""Measure the contenders in turns, each in a process of its own."""

import re
import resource
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.contenders import (
    CONTENDERS,
    PEAK_PRODUCTS,
    PEAK_SIDE,
    ROAD,
    plain_network,
)
from stages.lib.command import InputError
from stages.lib.device import choose_precision
from stages.lib.evaluation import Tensors
from stages.lib.params import Precision
from stages.lib.subset import load_split

SUBSET = Path("data/subset")
PATIENCE = 5  # seconds for a process to end by itself
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IMAGES = 6000  # of each split, in an epoch of the real pipeline: trained on one, evaluated on both


@dataclass
class Worker:
    """A contender in a process of its own, so that it has its own settings and its own memory."""

    name: str
    connection: Connection
    memory_before: float = 0  # it had a network, in bytes

    def start(self, what: str) -> None:
        """Let it begin with "train" or "evaluate"."""
        self.connection.send(what)

    def seconds(self) -> float:
        """Wait for it to end, and return how long it took."""
        try:
            return float(self.connection.recv())
        except EOFError:
            raise InputError(f"the process that measures {self.name} has ended") from None

    def time(self, what: str) -> float:
        """Return how long "train" or "evaluate" takes, or what "memory" answers."""
        self.start(what)
        return self.seconds()

    def peak_memory(self) -> float:
        """Return the most memory that it has held so far, in bytes: the GPU's, if it uses one."""
        return self.time("memory")


def serve(connection: Connection, name: str, images: int, threads: int) -> None:
    """Do what the other end says, and answer with the seconds that it took; end when it closes.

    The first answer is the memory that it took to be ready: Python, PyTorch and the images.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other end to obey
    torch.set_num_threads(threads)
    split, before = load_images(images, DEVICE), peak_memory()
    contender = CONTENDERS[name](split)
    connection.send(before)
    while True:
        try:
            what = connection.recv()
        except EOFError:
            return
        started = time.perf_counter()
        if what == "train":
            contender.train()
        elif what == "evaluate":
            contender.evaluate()
        seconds = time.perf_counter() - started
        connection.send(peak_memory() if what == "memory" else seconds)


def peak_memory() -> int:
    """Return the most memory that this process has held so far, in bytes."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose getrusage begins with what the parent process held
        kilobytes = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        return 1024 * int(kilobytes[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def load_images(count: int, device: torch.device) -> Tensors:
    """Return so many training images of the subset, of all classes alike."""
    split = load_split(SUBSET, "train")
    if len(split.labels) < count:
        raise InputError(f"{SUBSET} has {len(split.labels)} training images, {count} are wanted")
    chosen = np.linspace(0, len(split.labels), count, endpoint=False).astype(int)
    images, labels = split.images[chosen], split.labels[chosen]
    return Tensors(torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device))


@contextmanager
def workers(*contenders: tuple[str, int, int]) -> Iterator[list[Worker]]:
    """Yield a worker, warmed up, for each name, number of images and number of threads."""
    context = get_context("spawn")
    started, processes = [], []
    try:
        for contender in contenders:
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=serve, args=(theirs, *contender), daemon=True))
            processes[-1].start()
            theirs.close()
            started.append(Worker(contender[0], ours))
            started[-1].memory_before = started[-1].seconds()
        for worker in started:
            worker.time("train")
            worker.time("evaluate")
        yield started
    finally:
        for worker in started:
            worker.connection.close()
        for process in processes:
            process.join(PATIENCE)
            process.terminate()
            process.join()


def operations() -> tuple[int, int]:
    """Return the floating-point operations of the notebook's network for an image: train, evaluate.

    As PyTorch counts them: convolutions and linear layers, a multiply-add being two.
    """
    network, image = plain_network(), torch.zeros(2, 1, 32, 32)
    counts = []
    for backward in (True, False):
        with FlopCounterMode(display=False) as counter:
            logits = network(image)
            if backward:
                logits.sum().backward()
        counts.append(counter.get_total_flops() // len(image))
    return counts[0], counts[1]


def measure(names: Sequence[str], images: int, rounds: int) -> dict[str, dict[str, float]]:
    """Time training and evaluation of each, in turns.

    Returns:
        for each the median seconds of a whole epoch, extrapolated if these are fewer images, and
        the most memory held, in bytes.
    """
    seconds: dict[str, dict[str, list[float]]] = {
        name: {"train": [], "evaluate": []} for name in names
    }
    with workers(*((name, images, torch.get_num_threads()) for name in names)) as ready:
        for turn in range(rounds):
            for worker in ready:
                for what, measured in seconds[worker.name].items():
                    measured.append(worker.time(what))
            print(f"round {turn + 1} of {rounds}", flush=True)
        memory = [worker.peak_memory() for worker in ready]
    results = {}
    for (name, times), held in zip(seconds.items(), memory, strict=True):
        train = statistics.median(times["train"]) * IMAGES / images
        evaluate = statistics.median(times["evaluate"]) * 2 * IMAGES / images
        results[name] = {
            "train_seconds": train,
            "evaluate_seconds": evaluate,
            "epoch_seconds": train + evaluate,
            "peak_memory_bytes": held,
        }
    return results


def precisions() -> list[Precision]:
    """Return float32 and, where the hardware multiplies it, bfloat16."""
    return sorted({"fp32", choose_precision("auto", DEVICE)}, reverse=True)


def compare(images: int, rounds: int) -> dict[str, Any]:
    """Measure the notebook's loop, a DataLoader's and the pipeline's, and the machine's peak."""
    names = ["notebook", "DataLoader", *(f"pipeline {precision}" for precision in precisions())]
    measured = measure([*names, *(f"peak {name}" for name in precisions())], images, rounds)
    products = 2 * PEAK_SIDE**3 * PEAK_PRODUCTS * IMAGES / images
    peaks = {name: products / measured[f"peak {name}"]["train_seconds"] for name in precisions()}
    train, evaluate = operations()
    for name in names:
        row = measured[name]
        row["ratio"] = measured["notebook"]["epoch_seconds"] / row["epoch_seconds"]
        row["flops"] = (train + 2 * evaluate) * IMAGES / row["epoch_seconds"]
        row["fraction_of_peak"] = row["flops"] / peaks["bf16" if "bf16" in name else "fp32"]
    return {"peak_flops": peaks, "contenders": {name: measured[name] for name in names}}


def road(images: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measure the steps from the notebook's loop to the pipeline, each with those before it."""
    pipeline = [f"pipeline {precision}" for precision in precisions()]
    measured = measure(["notebook", *ROAD, *pipeline], images, rounds)
    before = measured["notebook"]
    for row in measured.values():
        row["ratio"] = before["epoch_seconds"] / row["epoch_seconds"]
        before = row
    return measured


def whole_epoch_memory(names: Sequence[str]) -> dict[str, float]:
    """Return the most memory that each holds in an epoch of all images, in bytes.

    Under "before" stands what it held before there was a network.
    """
    held = {}
    for name in names:
        with workers((name, IMAGES, torch.get_num_threads())) as (worker,):
            held[name] = worker.peak_memory()
            held["before"] = worker.memory_before
    return held


def side_by_side(name: str, images: int, rounds: int) -> dict[str, float]:
    """Time two trainings with half the threads each against one after the other with all."""
    threads = torch.get_num_threads()
    half = max(1, threads // 2)
    together, apart = [], []
    with workers((name, images, threads), (name, images, half), (name, images, half)) as ready:
        alone, *pair = ready
        for _ in range(rounds):
            apart.append(2 * sum(alone.time(what) for what in ("train", "evaluate")))
            started = time.perf_counter()
            for what in ("train", "evaluate"):
                for worker in pair:
                    worker.start(what)
                for worker in pair:
                    worker.seconds()
            together.append(time.perf_counter() - started)
    return {
        "one_after_the_other_seconds": statistics.median(apart),
        "side_by_side_seconds": statistics.median(together),
        "ratio": statistics.median(apart) / statistics.median(together),
    }


def growth(name: str, images: int, rounds: int) -> dict[str, float]:
    """Time training and evaluation of a quarter, a half and all of the images, in turns."""
    sizes = [images // 4, images // 2, images]
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    with workers(*((name, size, torch.get_num_threads()) for size in sizes)) as ready:
        for _ in range(rounds):
            for size, worker in zip(sizes, ready, strict=True):
                seconds[size].append(worker.time("train") + worker.time("evaluate"))
    return {str(size): statistics.median(measured) for size, measured in seconds.items()}
