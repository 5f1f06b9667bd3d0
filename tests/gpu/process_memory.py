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
        """Contexts, libraries, communicators and tensors."""
        return sum(
            process.usedGpuMemory or 0 for process in self._processes(self._device) if self._is_ours(process.pid)
        )

    def _is_ours(self, pid: int) -> bool:
        if pid not in self._ours:
            try:
                self._ours[pid] = os.getpid() in {parent.pid for parent in psutil.Process(pid).parents()}
            except psutil.NoSuchProcess:
                return False
        return self._ours[pid]
