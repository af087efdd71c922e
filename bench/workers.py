"""Time contenders in turns, each in a process of its own, with its own settings and memory."""

import re
import resource
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from bench.contenders import CONTENDERS, DEVICE
from stages.learning.inference import Images
from stages.learning.split import load_split
from stages.support.errors import InputError

SUBSET = Path("data/subset")
WORK = ("train", "evaluate")
ANSWERS: dict[str, Callable[[], float]] = {}  # in a worker's process: what it can be asked


@contextmanager
def running(*settings: tuple[str, int, int]) -> Iterator[list[ProcessPoolExecutor]]:
    """Yield a worker, warmed up, for each name, number of images and number of threads."""
    spawn = get_context("spawn")
    workers = [ProcessPoolExecutor(1, spawn, _become, setting) for setting in settings]
    try:
        with ExitStack() as stack:
            for worker in workers:
                stack.enter_context(worker)
                for work in WORK:
                    ask(work, worker)
            yield workers
    except BrokenProcessPool:
        names = ", ".join(dict.fromkeys(name for name, *_ in settings))
        raise InputError(f"a process that measures has ended, one of: {names}") from None


def ask(question: str, *workers: ProcessPoolExecutor) -> list[float]:
    """Ask the workers at once, and wait for all of them.

    To "train" and "evaluate" they answer with the seconds that this took, to "memory" with the most
    bytes held so far, to "before" with those held before there was a network.
    """
    answers = [worker.submit(_answer, question) for worker in workers]
    return [answer.result() for answer in answers]


def in_turns(workers: Sequence[ProcessPoolExecutor], rounds: int) -> list[list[float]]:
    """Return for each worker the median seconds of training and of evaluation."""
    measured = []
    for turn in range(rounds):
        measured.append([[ask(work, worker)[0] for work in WORK] for worker in workers])
        print(f"round {turn + 1} of {rounds}", flush=True)
    medians: list[list[float]] = np.median(measured, axis=0).tolist()
    return medians


def _become(name: str, images: int, threads: int) -> None:
    """Make this process the worker of a contender."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, without a traceback
    torch.set_num_threads(threads)
    split = sample_images(images)
    before = peak_memory()
    contender = CONTENDERS[name](split)
    ANSWERS.update(
        train=lambda: seconds(contender.train),
        evaluate=lambda: seconds(contender.evaluate),
        memory=peak_memory,
        before=lambda: before,
    )


def _answer(question: str) -> float:
    return ANSWERS[question]()


def sample_images(count: int) -> Images:
    """Return so many training images, of all classes alike, or raise an InputError."""
    split = load_split(SUBSET, "train")
    if len(split.labels) < count:
        raise InputError(f"{SUBSET} has {len(split.labels)} training images, {count} are wanted")
    chosen = np.linspace(0, len(split.labels), count, endpoint=False).astype(int)
    images, labels = split.images[chosen], split.labels[chosen]
    return Images(torch.from_numpy(images).to(DEVICE), torch.from_numpy(labels).to(DEVICE))


def seconds(work: Callable[[], object]) -> float:
    """Return how long the work takes, on a GPU until the GPU has done it."""
    started = time.perf_counter()
    work()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def median_seconds(work: Callable[[], object], turns: int) -> float:
    """Return the median of how long the work takes."""
    return statistics.median(seconds(work) for _ in range(turns))


def peak_memory() -> int:
    """Return the most memory that this process has held so far, in bytes: the GPU's, if used."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose getrusage begins with what the parent process held
        kilobytes = re.findall(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"))
        return 1024 * int(kilobytes[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
