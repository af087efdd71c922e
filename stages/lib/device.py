"""Where the arithmetic happens, and that it is repeatable there."""

import ctypes
import os
import platform
from typing import Literal

import torch

from stages.lib.command import InputError
from stages.lib.params import Device, Precision

# Processors that multiply bfloat16: AVX512_BF16 and AMX of x86, BF16 and SVE's of Arm.
CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
CUDA_BF16 = (8, 0)  # compute capability
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


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
    if platform.libc_ver()[0] == "glibc":
        # Freed memory is kept for the next step: the system would zero every page of it anew.
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    if choice == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats only with it
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, and changes nothing
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    return torch.device(choice)


def choose_precision(choice: Literal[Precision, "auto"], device: torch.device) -> Precision:
    """Return the precision of that name; auto is bf16 where the hardware multiplies bfloat16."""
    if choice != "auto":
        return choice
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= CUDA_BF16 else "fp32"
    return "bf16" if device.type == "cpu" and bf16_instructions() else "fp32"


def bf16_instructions() -> list[str]:
    """Return by name the instructions with which this processor multiplies bfloat16."""
    has = torch.cpu.get_capabilities()
    return [name for name in CPU_BF16 if has.get(name)]
