"""Where the arithmetic happens, and that it is repeatable there."""

import os

import torch

from stages.lib.command import InputError
from stages.lib.params import Device


def prepare(choice: Device) -> torch.device:
    """Return the device of that name, set to float32 arithmetic that repeats to the bit.

    Call it before any other work with tensors: threads inherit the flushing of denormal numbers,
    which slow a CPU down a hundredfold, from the one that sets it.

    Raises:
        InputError: this machine has no such device.
    """
    has = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if choice == "auto":
        choice = next(name for name in ("cuda", "mps", "cpu") if has[name])
    if not has[choice]:
        available = ", ".join(name for name, there in has.items() if there)
        raise InputError(
            f"params.yaml: train.device: {choice}: this machine has only {available}; use auto"
        )
    torch.set_flush_denormal(True)
    if choice == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats only with it
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, and changes nothing
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    return torch.device(choice)
