"""All that a training needs to go on after its last finished epoch, in one file."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from stages.lib.command import InputError
from stages.lib.files import remove, temporary
from stages.lib.tensorfile import Tensors, read_tensors, write_tensors
from stages.lib.training import EpochRow

Fingerprint = dict[str, object]  # JSON values, by what they are called in a message


@dataclass(frozen=True)
class Progress:
    """What a training has to show for its finished epochs: a row for each."""

    rows: list[EpochRow] = field(default_factory=list)  # what was learned
    timings: list[dict[str, str | int | float]] = field(default_factory=list)  # how long and where


def changes(before: Fingerprint, now: Fingerprint) -> str:
    """Return in words what differs; nothing if nothing does."""
    pairs = {key: (before.get(key), now.get(key)) for key in {**before, **now}}
    return ", ".join(
        f"{key} was {old}, is {new}" for key, (old, new) in pairs.items() if old != new
    )


@contextmanager
def saving(
    path: Path, fingerprint: Fingerprint, network: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[Callable[[Progress, str], None]]:
    """Yield a function that replaces the checkpoint by the present state, then prints a line.

    The function takes the progress so far and the line. It copies the state and returns: a thread
    writes the copy while the next epoch trains, since a disk takes longer than memory.

    Raises:
        InputError: a checkpoint cannot be written; raised by the next call, or at the end of the
            block. The one before is untouched.
    """
    last: Future[None] | None = None
    remove(temporary(path))  # of a run that was killed; there may be nothing left to save

    with ThreadPoolExecutor(max_workers=1) as thread:

        def save(progress: Progress, line: str) -> None:
            nonlocal last
            if last:
                last.result()
            tensors = {
                name: np.array(tensor.cpu().numpy(), order="C")
                for name, tensor in _tensors(network, optimizer)
            }
            description = {"rows": [*progress.rows], "timings": [*progress.timings]}
            last = thread.submit(
                _write, path, tensors, {"fingerprint": fingerprint, **description}, line
            )

        yield save
        if last:
            last.result()


def _tensors(
    network: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in network.state_dict().items():
        yield f"network.{name}", tensor
    for index, moments in optimizer.state_dict()["state"].items():
        for name, tensor in moments.items():
            if tensor is not None:
                yield f"optimizer.{index}.{name}", tensor


def _write(path: Path, tensors: Tensors, description: Mapping[str, object], line: str) -> None:
    write_tensors(path, tensors, description)
    tqdm.write(line)
    sys.stdout.flush()


def resume(
    candidates: Iterable[Path],
    fingerprint: Fingerprint,
    ran_on: dict[str, str | int],
    epochs: int,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Progress:
    """Put the first fitting checkpoint's state into network and optimizer; return its progress.

    Prints what it found, why a checkpoint does not fit, and whether the machine is another than
    that of the last epoch.

    Args:
        candidates: where a checkpoint may be.
        fingerprint: of everything that decides the result but the number of epochs.
        ran_on: as `stages.lib.machine.describe` says.
        epochs: that are wanted; a checkpoint with more does not fit.
        network: its weights and statistics are replaced, if a checkpoint fits.
        optimizer: of its parameters; likewise.
    """
    for path in filter(Path.exists, candidates):
        try:
            tensors, progress = _load(path, fingerprint, epochs)
        except InputError as error:
            print(error, flush=True)
            continue
        _restore(tensors, network, optimizer)
        print(f"{path}: goes on after epoch {len(progress.rows)}", flush=True)
        keys = ("threads", "processor", "instructions", "device")
        machine: Fingerprint = {key: ran_on[key] for key in keys}
        places = [{key: row[key] for key in machine} for row in progress.timings]
        others = [changed for place in places if (changed := changes({**place}, machine))]
        if others and len(progress.rows) < epochs:
            print(f"{others[-1]}: bits may differ from those of a run in one go", flush=True)
        return progress
    print("starts with epoch 1", flush=True)
    return Progress()


def _load(
    path: Path, fingerprint: Fingerprint, epochs: int
) -> tuple[dict[str, torch.Tensor], Progress]:
    tensors, description = read_tensors(path)
    if "fingerprint" not in description:
        raise InputError(f"{path} is not a checkpoint")
    if changed := changes(description["fingerprint"], fingerprint):
        raise InputError(f"{path} is of another training: {changed}")
    progress = Progress(description["rows"], description["timings"])
    if len(progress.rows) > epochs:
        raise InputError(f"{path} has {len(progress.rows)} epochs, more than the {epochs} wanted")
    return {name: torch.from_numpy(array) for name, array in tensors.items()}, progress


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
        index, name = name.split(".")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            # In the parameter's memory format: a fused optimizer walks both in step.
            tensor = torch.empty_like(parameter).copy_(tensor)
        state["state"].setdefault(int(index), {})[name] = tensor
    network.load_state_dict(learned)
    optimizer.load_state_dict(state)
