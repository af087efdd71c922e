"""Where a training ran."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from stages.lib.device import bf16_instructions


def describe(device: torch.device) -> dict[str, str | int]:
    """Return what the notebook prints of versions and machine, and what else decides the bits."""
    return {
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "torch": version("torch"),
        "torchvision": version("torchvision"),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": _processor(),
        # By which PyTorch and oneDNN choose their kernels: the name may hide them.
        "instructions": " ".join([torch.backends.cpu.get_cpu_capability(), *bf16_instructions()]),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def _processor() -> str:
    # platform.processor() is empty or the bare architecture on most Linux systems, and Linux on ARM
    # names no model.
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
