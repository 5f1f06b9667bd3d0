"""The most that is taken of a GPU during a phase, by the driver's process and those that it has started."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.gpu.process_memory import ProcessMemory

INTERVAL_S = 0.005
"""Between two looks: activations of a layer live longer than that but for the smallest models."""


class Peaks:
    """Of one GPU; phases that come again keep their largest peak."""

    def __init__(self, gpu: int) -> None:
        self._gpu = gpu
        self.bytes_of: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Look at the GPU's memory while the body runs."""
        done = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(name, ProcessMemory(self._gpu), done), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()

    def _watch(self, name: str, memory: ProcessMemory, done: threading.Event) -> None:
        while True:
            self.bytes_of[name] = max(self.bytes_of.get(name, 0), memory.used_bytes())
            if done.wait(INTERVAL_S):
                return
