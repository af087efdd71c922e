"""Where the arithmetic happens, that it repeats to the bit there, and in which precision."""

import ctypes
import os
import platform
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement

from stages.support.errors import InputError
from stages.support.gpus import take_gpu
from stages.support.params import Device, Precision

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
PINNED = "pinned"  # the dependency group of pyproject.toml with the versions that decide bits

# Processors that multiply bfloat16: AVX512_BF16 and AMX of x86, BF16 and SVE's of Arm.
CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
CUDA_BF16 = (8, 0)  # compute capability
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def set_up_device(choice: Device) -> torch.device:
    """Return the device of that name, set to float32 arithmetic that repeats to the bit.

    Call this before the first tensor operation: worker threads copy the flush-to-zero setting when
    they start. Arithmetic on denormal numbers is about 100 times slower than on others.

    Raises:
        InputError: this machine has no such device, or another version than the pinned one.
    """
    require_pinned_versions()
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
        # Keep freed memory for the next step. The system would zero every page of it anew.
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    if choice == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats only with it
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # slow, and changes nothing
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32
        return torch.device("cuda", take_gpu())
    return torch.device(choice)


def require_pinned_versions() -> None:
    """Check the versions that decide bits against pyproject.toml, which DVC records.

    Raises:
        InputError: another version is installed. A local part such as +cu130 does not count.
    """
    groups = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["dependency-groups"]
    for requirement in map(Requirement, groups[PINNED]):
        installed = version(requirement.name)
        if not requirement.specifier.contains(installed, prereleases=True):
            raise InputError(
                f"pyproject.toml pins {requirement}, but {installed} is installed: `make env` "
                f"installs the pinned one; to change the pin, edit [dependency-groups] {PINNED}, "
                "after which `dvc repro` trains every variant again"
            )


def choose_precision(choice: Literal[Precision, "auto"], device: torch.device) -> Precision:
    """Return the precision of that name; auto is bf16 where the hardware multiplies bfloat16."""
    if choice != "auto":
        return choice
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= CUDA_BF16 else "fp32"
    capabilities = torch.cpu.get_capabilities()
    multiplies_bf16 = any(capabilities.get(name) for name in CPU_BF16)
    return "bf16" if device.type == "cpu" and multiplies_bf16 else "fp32"
