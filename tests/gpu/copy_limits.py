"""What plain copies reach in a process that has a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch

from r1hpc.train.arena import Arena, TensorSpec

LIMIT_BYTES = 1 << 30


def copy_limits(device: torch.device) -> Mapping[str, float]:
    """GB/s of plain copies: within the device (bytes read and written), and over pinned memory each way."""
    ones = torch.ones(LIMIT_BYTES, dtype=torch.uint8, device=device)
    other = torch.empty_like(ones)
    arena = Arena([TensorSpec((LIMIT_BYTES,), torch.uint8)], torch.device("cpu"), pinned=True)
    (host,) = arena.tensors
    copies: dict[str, Callable[[], object]] = {
        "device copy": lambda: other.copy_(ones),
        "device to host": lambda: host.copy_(ones, non_blocking=True),
        "host to device": lambda: other.copy_(host, non_blocking=True),
    }
    found = {}
    for name, copy in copies.items():
        copy()
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        for _ in range(5):
            copy()
        torch.cuda.synchronize(device)
        factor = 2 if name == "device copy" else 1
        found[name] = factor * 5 * LIMIT_BYTES / 1e9 / (time.perf_counter() - began)
    return found
