"""The most that is taken of a GPU during a phase, by all processes, as the driver counts it."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

INTERVAL_S = 0.005
"""Between two looks: activations of a layer live longer than that but for the smallest models."""


def used_before(gpu: int) -> int:
    """Bytes in use before this process has touched the GPU."""
    query = ["nvidia-smi", f"--id={gpu}", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return int(subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout) * 2**20


class Peaks:
    """Of one GPU; phases that come again keep their largest peak."""

    def __init__(self, gpu: int, before: int) -> None:
        """before: bytes that are not ours."""
        self._gpu = gpu
        self._before = before
        self.bytes_of: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Look at the GPU's memory while the body runs."""
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(name, done), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def _watch(self, name: str, done: threading.Event) -> None:
        while True:
            free, total = torch.cuda.mem_get_info(self._gpu)
            self.bytes_of[name] = max(self.bytes_of.get(name, 0), total - free - self._before)
            if done.wait(INTERVAL_S):
                return
