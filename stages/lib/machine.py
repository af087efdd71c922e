"""Where a training ran."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def describe(device: torch.device) -> dict[str, str | int]:
    """Return the versions and the machine that the notebook prints, and cores, threads, device."""
    return {
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "torch": version("torch"),
        "torchvision": version("torchvision"),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": _processor(),
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
