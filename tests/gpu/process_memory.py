"""GPU memory of some processes as the driver counts it: others may use the same GPU meanwhile."""

from __future__ import annotations

import os

import psutil
import torch


class ProcessMemory:
    """Of this process on one GPU, and of those that it has started. Needs nvidia-ml-py, as GPU installations have."""

    def __init__(self, gpu: int) -> None:
        import pynvml  # type: ignore[import-untyped,import-not-found,unused-ignore]

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(gpu).uuid}"
        self._processes = pynvml.nvmlDeviceGetComputeRunningProcesses
        self._device = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        self._ours = {os.getpid(): True}

    def used_bytes(self) -> int:
        """Contexts, libraries, communicators and tensors. Raises RuntimeError where NVML cannot tell."""
        running = {process.pid: process.usedGpuMemory for process in self._processes(self._device)}
        here: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        if here and running.get(os.getpid()) is None:
            raise RuntimeError(f"NVML does not say what process {os.getpid()} has of the GPU: another PID namespace?")
        return sum(used or 0 for pid, used in running.items() if self._is_ours(pid))

    def _is_ours(self, pid: int) -> bool:
        if pid not in self._ours:
            try:
                self._ours[pid] = os.getpid() in {parent.pid for parent in psutil.Process(pid).parents()}
            except psutil.NoSuchProcess:
                return False
        return self._ours[pid]
