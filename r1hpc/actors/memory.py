"""The memory that trainer and engine share, as the trainer's process beside it reads it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil

_SHOWN = 8


@dataclass(frozen=True)
class MemoryReading:
    """Of one rank, now."""

    rank: int
    memory: str
    """Which memory it is: "GPU 3 of node02", or "host local01", which all slots of a host have in common."""
    free_bytes: int
    total_bytes: int
    process_bytes: int
    """Host memory of the trainer's process: pinned copies, optimizer, libraries."""


def read_memory(rank: int, host: str, gpu: int | None) -> MemoryReading:
    """gpu: index of the device that torch.cuda has; None on a CPU, where host memory is what both sides share."""
    process_bytes = psutil.Process().memory_info().rss
    if gpu is None:
        # What can be had without swapping: page cache counts as free, as the kernel gives it up.
        host_memory = psutil.virtual_memory()
        return MemoryReading(rank, f"host {host}", host_memory.available, host_memory.total, process_bytes)
    import torch

    free, total = torch.cuda.mem_get_info(gpu)
    return MemoryReading(rank, f"GPU {gpu} of {host}", free, total, process_bytes)


def holders(gpu: int | None) -> list[str]:
    """Who holds the memory, the largest first: `pid 812 (python -m ...) holds 71.2 GiB`; [] where nobody can tell."""
    held = _on_host() if gpu is None else _on_gpu(gpu)
    largest = sorted(held.items(), key=lambda item: -item[1])[:_SHOWN]
    return [f"pid {pid} ({_command(pid)}) holds {size / 2**30:.1f} GiB" for pid, size in largest]


def _on_gpu(gpu: int) -> dict[int, int]:
    try:
        import pynvml  # type: ignore[import-untyped,import-not-found,unused-ignore]

        pynvml.nvmlInit()
    except Exception:  # no binding, or a driver that NVML does not like: the error is told without it
        return {}
    try:
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(_nvml_device(pynvml, gpu))
        return {process.pid: process.usedGpuMemory or 0 for process in processes}
    except pynvml.NVMLError:
        return {}
    finally:
        pynvml.nvmlShutdown()


def _nvml_device(nvml: object, gpu: int) -> object:
    """NVML counts all devices of the machine, torch those that the job may use: the UUID names one to both."""
    import torch

    uuid = f"GPU-{torch.cuda.get_device_properties(gpu).uuid}"
    return nvml.nvmlDeviceGetHandleByUUID(uuid)  # type: ignore[attr-defined]


def _on_host() -> dict[int, int]:
    """Resident sizes of the processes of this user."""
    found = {}
    for process in psutil.process_iter(["pid", "memory_info", "uids"]):
        uids, memory = process.info["uids"], process.info["memory_info"]
        if uids is not None and memory is not None and uids.real == os.getuid():
            found[process.info["pid"]] = memory.rss
    return found


def _command(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())[:60] or "?"
    except psutil.Error:
        return "?"
