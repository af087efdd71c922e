"""All that a training needs to go on after its last saved epoch, in one file."""

import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from stages.support.atomic import remove, temporary_folder
from stages.support.errors import (
    InputError,
    postpone_signals,
    signal_is_pending,
    stop_postponing_signals,
)
from stages.support.git import checkouts_above
from stages.support.tensors import Arrays, read_tensors, write_tensors

CHECKPOINTS = Path(".checkpoints")  # not an output: DVC removes a stage's outputs before it runs

Fingerprint = Mapping[str, object]  # JSON values, by the names that `changes` prints


@dataclass
class Progress:
    """What a training has to show for its finished epochs: a row for each, as JSON values."""

    rows: list[dict[str, Any]] = field(default_factory=list)  # what was learned
    timings: list[dict[str, Any]] = field(default_factory=list)  # how long it took, and where


def checkpoint_path(variant: str, seed: int) -> Path:
    """Return where the checkpoint of a training is."""
    return CHECKPOINTS / variant / f"{seed}.safetensors"


def changes(before: Fingerprint, now: Fingerprint) -> str:
    """Return in words what differs, or an empty text."""
    pairs = {key: (before.get(key), now.get(key)) for key in {**before, **now}}
    return ", ".join(
        f"{key} was {old}, is {new}" for key, (old, new) in pairs.items() if old != new
    )


@contextmanager
def saving(
    path: Path,
    fingerprint: Fingerprint,
    epochs: int,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    costs_between_saves: float,
) -> Iterator[Callable[[Progress, str], None]]:
    """Yield a function to call after each epoch: it saves the state, if that is due, and prints.

    The cost of a save is how long it holds the training up: while the state is copied, and while
    the write before it ends. A thread writes the copy while the next epoch trains, since a disk
    takes longer than memory. The next save comes `costs_between_saves` costs after the last one, so
    every epoch is saved where an epoch takes longer than that. The last epoch is always saved.

    The function takes the progress so far and a line about the epoch. The line is printed with
    "saved" once the file is on disk, or with "not saved". After an epoch that was not saved, SIGINT
    and SIGTERM wait until the running epoch is trained and saved. The wait is short, because an
    epoch goes unsaved only where epochs are short.

    Args:
        path: of the checkpoint.
        fingerprint: of everything that decides the result but the number of epochs.
        epochs: how many are wanted.
        network: its weights and BatchNorm's statistics are saved.
        optimizer: the network's; its state is saved.
        costs_between_saves: 20 bounds the time for saving to 5 %; 0 saves every epoch.

    Raises:
        InputError: a checkpoint cannot be written; raised by the next call, or at the end of the
            block. The one before is untouched.
    """
    written: Future[None] | None = None
    saved_at, cost = perf_counter(), 0.0
    # A run that was killed may have left it, and this one may have nothing more to write.
    remove(temporary_folder(path))

    with ThreadPoolExecutor(max_workers=1) as thread:

        def save(progress: Progress, line: str) -> None:
            nonlocal written, saved_at, cost
            started = perf_counter()
            if written:
                written.result()
            # Copies, because the next epoch changes the tensors while the thread writes.
            arrays = {
                name: np.array(tensor.cpu().numpy(), order="C")
                for name, tensor in _tensors(network, optimizer)
            }
            described = {
                "fingerprint": fingerprint,
                "rows": [*progress.rows],
                "timings": [*progress.timings],
            }
            written = thread.submit(_write, path, arrays, described, line)
            saved_at = perf_counter()
            cost = saved_at - started

        def after_epoch(progress: Progress, line: str) -> None:
            # A signal during the save, or until the next one if none is due, waits for the save.
            postpone_signals()
            due = perf_counter() - saved_at >= costs_between_saves * cost
            if due or signal_is_pending() or len(progress.rows) == epochs:
                save(progress, f"{line}, saved")
                if signal_is_pending() and written:
                    written.result()  # This is the last chance to say that the disk is full.
                stop_postponing_signals()
            else:
                thread.submit(_print, f"{line}, not saved")  # after the line of the epoch before

        yield after_epoch
        if written:
            written.result()


def _tensors(
    network: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in network.state_dict().items():
        yield f"network.{name}", tensor
    for index, moments in optimizer.state_dict()["state"].items():
        for name, tensor in moments.items():
            if tensor is not None:  # Without momentum, SGD's only moment is None.
                yield f"optimizer.{index}.{name}", tensor


def _write(path: Path, arrays: Arrays, description: Mapping[str, object], line: str) -> None:
    write_tensors(path, arrays, description)
    _print(line)


def _print(line: str) -> None:
    tqdm.write(line)  # beside the progress bar
    sys.stdout.flush()


def resume(
    path: Path,
    fingerprint: Fingerprint,
    runs_on: Mapping[str, object],
    epochs: int,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Progress:
    """Put a fitting checkpoint's state into network and optimizer, and return its progress.

    Prints what was found, why a checkpoint does not fit, and whether the machine is another than
    that of the epochs so far.

    Args:
        path: of the checkpoint. In a copy of the checkout, as `dvc exp run --temp` makes it within
            .dvc, the checkout's own checkpoint serves where the copy has none that fits.
        fingerprint: of everything that decides the result but the number of epochs.
        runs_on: as `stages.support.machine.describe` says.
        epochs: how many are wanted; a checkpoint with more does not fit.
        network: its weights and statistics are replaced, if a checkpoint fits.
        optimizer: the network's; its state is replaced, if a checkpoint fits.
    """
    for candidate in [path, *(checkout / path for checkout in checkouts_above())]:
        if not candidate.exists():
            continue
        try:
            tensors, progress = _load(candidate, fingerprint, epochs)
        except InputError as error:
            print(str(error).partition(";")[0], flush=True)  # The remedy is for results.
            continue
        _restore(tensors, network, optimizer)
        print(f"{candidate}: goes on after epoch {len(progress.rows)}", flush=True)
        here = {key: runs_on[key] for key in ("threads", "processor", "instructions", "device")}
        earlier = [{key: row.get(key) for key in here} for row in progress.timings]
        differences = [changed for place in earlier if (changed := changes(place, here))]
        if differences and len(progress.rows) < epochs:
            print(f"{differences[-1]}: bits may differ from those of a run in one go", flush=True)
        return progress
    print("starts with epoch 1", flush=True)
    return Progress()


def _load(
    path: Path, fingerprint: Fingerprint, epochs: int
) -> tuple[dict[str, torch.Tensor], Progress]:
    arrays, description = read_tensors(path)
    if changed := changes(description.get("fingerprint", {}), fingerprint):
        raise InputError(f"{path} is of another training: {changed}")
    progress = Progress(description["rows"], description["timings"])
    if len(progress.rows) > epochs:
        raise InputError(f"{path} has {len(progress.rows)} epochs, more than the {epochs} wanted")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, progress


def _restore(
    tensors: dict[str, torch.Tensor], network: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    learned: dict[str, torch.Tensor] = {}
    parameters = list(network.parameters())
    state = optimizer.state_dict()
    for key, tensor in tensors.items():
        owner, name = key.split(".", maxsplit=1)
        if owner == "network":
            learned[name] = tensor
            continue
        index, moment = name.split(".")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:  # as all are but Adam's count of steps
            # A fused optimizer walks through the parameter and its moments in step, so the moments
            # must have the parameter's memory format.
            tensor = torch.empty_like(parameter).copy_(tensor)
        state["state"].setdefault(int(index), {})[moment] = tensor
    network.load_state_dict(learned)
    optimizer.load_state_dict(state)
