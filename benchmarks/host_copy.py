"""GB/s of plain work on host memory: the limit beside which work on more than fits into the caches is measured."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

FLOAT_BYTES = 4


def best_seconds(work: Callable[[], object], repetitions: int) -> float:
    """Of the shortest run; the first is not counted."""
    work()
    seconds = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def host_rates(size_bytes: int, repetitions: int = 4) -> dict[str, float]:
    """GB/s, read and written, of torch's own work on two float32 tensors of so many bytes, by as many threads as set.

    copy: target = source, 8 bytes a value. A processor reads a line before it writes part of it, so its memory moves up
    to 12. add: target += source, which reads what it writes anyway: 12. scale: target *= 2, 8.
    """
    source, target = (_touched(size_bytes // FLOAT_BYTES) for _ in range(2))
    moved: dict[str, tuple[int, Callable[[], Tensor]]] = {
        "copy": (2, lambda: target.copy_(source)),
        "add": (3, lambda: target.add_(source)),
        "scale": (2, lambda: target.mul_(0.5)),
    }
    return {
        name: times * source.numel() * FLOAT_BYTES / best_seconds(work, repetitions) / 1e9
        for name, (times, work) in moved.items()
    }


def _touched(numel: int) -> Tensor:
    """Its pages spread over the memory as the threads that use them are."""
    return torch.empty(numel, dtype=torch.float32).fill_(1.0)
