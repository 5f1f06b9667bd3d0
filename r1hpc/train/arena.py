"""One allocation for many tensors, of exactly their size, pinned where a GPU copies from it.

torch's own pinned allocator rounds every block up to a power of two: 70 GB of optimizer state would take 128 GB of a
node's memory. So host memory is mapped here, page by page our own, and registered with CUDA as it is.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from r1hpc.errors import R1hpcError

ALIGNMENT_BYTES = 64
"""Of each tensor: a cache line, and the widest vector of a CPU."""


class ArenaError(R1hpcError):
    """Host memory that the system does not give, or does not pin."""


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor that is to lie in an arena."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        """Those of a tensor that exists."""
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def size_bytes(self) -> int:
        """Without alignment."""
        return math.prod(self.shape) * self.dtype.itemsize


class Arena:
    """Contiguous memory on a device, allocated once, and the tensors in it; their values are not set.

    On the CPU, pages of its own; `pinned` registers them with CUDA, so that copies to and from a GPU need no staging.
    Raises ArenaError for host memory that cannot be had.
    """

    def __init__(self, specs: Sequence[TensorSpec], device: torch.device, pinned: bool = False) -> None:
        assert not (pinned and device.type != "cpu"), f"memory of {device} cannot be pinned; only host memory can"
        offsets, self.size_bytes = _offsets(specs)
        memory = _host_memory(self.size_bytes) if device.type == "cpu" else _device_memory(self.size_bytes, device)
        self.pinned = pinned
        self.tensors: tuple[Tensor, ...] = tuple(
            memory[offset : offset + spec.size_bytes].view(spec.dtype).view(spec.shape)
            for offset, spec in zip(offsets, specs, strict=True)
        )
        """In the order of the specs. They keep the memory alive; close() ends only its registration."""
        self._unregister = _register(self, memory) if pinned else None

    def close(self) -> None:
        """Let go of the memory: it is unpinned now, and returned when the last view of it has gone."""
        if self._unregister is not None:
            self._unregister()
        self.tensors = ()
        self.pinned = False


def _offsets(specs: Sequence[TensorSpec]) -> tuple[list[int], int]:
    """Where each tensor begins, and the bytes of all."""
    offsets, end = [], 0
    for spec in specs:
        offsets.append(end)
        end += math.ceil(spec.size_bytes / ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return offsets, end


def _host_memory(size_bytes: int) -> Tensor:
    """[size_bytes] uint8 on pages that nothing else shares: a page can be registered once only."""
    try:
        pages = mmap.mmap(-1, max(size_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise ArenaError(_refused(size_bytes, "mapped", str(error))) from error
    # Pinning 70 GB takes 18 million small pages, or 35 thousand large ones. A kernel built without them knows no such
    # advice.
    with contextlib.suppress(OSError):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)[:size_bytes]


def _device_memory(size_bytes: int, device: torch.device) -> Tensor:
    return torch.empty(size_bytes, dtype=torch.uint8, device=device)


def _register(arena: Arena, memory: Tensor) -> weakref.finalize[[int], Arena]:
    """Pin the memory until the arena is closed or goes; the end of the process needs no help."""
    address = memory.data_ptr()
    try:
        torch.cuda.check_error(int(_cudart().cudaHostRegister(address, memory.numel(), 0)))
    except torch.cuda.CudaError as error:
        raise ArenaError(_refused(memory.numel(), "pinned", f"cudaHostRegister: {error}")) from error
    unregister = weakref.finalize(arena, _unregister, address)
    unregister.atexit = False
    return unregister


def _unregister(address: int) -> None:
    torch.cuda.check_error(int(_cudart().cudaHostUnregister(address)))


def _refused(size_bytes: int, what: str, reason: str) -> str:
    return (
        f"{size_bytes / 1e9:.1f} GB of host memory could not be {what} ({reason}). Every process of the node takes its"
        " share: see the host memory of the plan; raise the memory that the job asks Slurm for, and the node's limits"
        " on locked memory (ulimit -l), or use more nodes"
    )


def _cudart() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
