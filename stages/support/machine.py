"""Where a training ran, and with which versions."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def describe(device: torch.device) -> dict[str, str | int]:
    """Return versions and machine as the notebook prints them, and what else decides the bits."""
    capabilities = torch.cpu.get_capabilities()
    bf16 = [name for name, has in capabilities.items() if "bf16" in name and has is True]
    return {
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "torch": version("torch"),
        "torchvision": version("torchvision"),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": _processor(),
        # PyTorch and oneDNN choose their kernels by these, which a processor's name may not tell.
        "instructions": " ".join([torch.backends.cpu.get_cpu_capability(), *bf16]),
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
