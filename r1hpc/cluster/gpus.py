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
    found = sum(1 for path in device_files.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    visible = found if listed is None else min(found, len([word for word in listed.split(",") if word.strip()]))
    try:
        import pynvml  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        return GpuFacts(visible)
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return GpuFacts(visible)
    try:
        return _through_nvml(pynvml, visible)
    finally:
        pynvml.nvmlShutdown()


def logical_slots(environment: Mapping[str, str], scheduler_gpus: int | None) -> int | None:
    """Logical GPU slots of a node without GPUs, as the scheduler gave them; None when nobody says."""
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed:
        return len(listed.split(","))
    return scheduler_gpus


def _through_nvml(nvml: Any, visible: int) -> GpuFacts:
    names, memory, foreign = [], [], []
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        names.append(_text(nvml.nvmlDeviceGetName(handle)))
        memory.append(int(nvml.nvmlDeviceGetMemoryInfo(handle).total))
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle):
            held = (process.usedGpuMemory or 0) / 2**30
            foreign.append(f"GPU {index}: pid {process.pid} holds {held:.1f} GiB")
    driver = _text(nvml.nvmlSystemGetDriverVersion())
    return GpuFacts(min(visible, len(names)), tuple(names), tuple(memory), driver, tuple(foreign))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
