"""What a node knows of its GPUs: through NVML where its binding is installed, else by the device files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class GpuFacts:
    """The GPUs of one node."""

    visible: int
    """What the job may use: CUDA_VISIBLE_DEVICES if set, else all that are there."""
    names: Sequence[str] = ()
    memory_bytes: Sequence[int] = ()
    """Total, of each GPU; empty without NVML."""
    driver: str | None = None
    foreign: Sequence[str] = ()
    """Processes that hold GPU memory before the run has started: `GPU 3: pid 812 holds 71.2 GiB`."""


def gpu_facts(environment: Mapping[str, str], device_files: Path = Path("/dev")) -> GpuFacts:
    """The GPUs that this process may use. Imports no CUDA: a context would itself hold memory."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    try:
        import pynvml  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        return GpuFacts(_visible(_device_files(device_files), listed))
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return GpuFacts(_visible(_device_files(device_files), listed))
    try:
        return _through_nvml(pynvml, listed)
    finally:
        pynvml.nvmlShutdown()


def _device_files(directory: Path) -> int:
    return sum(1 for path in directory.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))


def _visible(found: int, listed: str | None) -> int:
    """Of those found, what CUDA_VISIBLE_DEVICES lets this process use."""
    return found if listed is None else min(found, len([word for word in listed.split(",") if word.strip()]))


def logical_slots(environment: Mapping[str, str], scheduler_gpus: int | None) -> int | None:
    """Logical GPU slots of a node without GPUs, as the scheduler gave them; None when nobody says."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed:
        return len(listed.split(","))
    return scheduler_gpus


def _through_nvml(nvml: Any, listed: str | None) -> GpuFacts:
    """What the driver answers counts, and no device file: a virtual machine may have others, or none."""
    names, memory, foreign = [], [], []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        names.append(_text(nvml.nvmlDeviceGetName(handle)))
        memory.append(int(nvml.nvmlDeviceGetMemoryInfo(handle).total))
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            held = (process.usedGpuMemory or 0) / 2**30
            foreign.append(f"GPU {index}: pid {process.pid} holds {held:.1f} GiB")
    driver = _text(nvml.nvmlSystemGetDriverVersion())
    return GpuFacts(_visible(len(names), listed), tuple(names), tuple(memory), driver, tuple(foreign))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
