"""What a GPU spent its time on, by what its kernels are for: told from their names."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ATTENTION = "attention"
GROUPED = "grouped products of experts"
DENSE = "other matrix products"
MOVING = "routing, permutation, gather, scatter"
ELEMENTWISE = "norms, rotary, elementwise, reductions"
COPIES = "copies to and from the host"
COMMUNICATION = "NCCL"
OTHER = "others"
IDLE = "idle"

_WORDS: Sequence[tuple[str, Sequence[str]]] = (
    (COMMUNICATION, ("nccl", "c10d::")),
    (COPIES, ("memcpy htod", "memcpy dtoh", "aten::copy_")),
    (ATTENTION, ("sdpa", "flash", "fmha", "attention", "compute_dot_do_o", "convert_dq", "cudnn::fusion")),
    (GROUPED, ("groupproblemshape", "grouped_gemm", "groupedgemm", "grouped_mm")),
    # Before matrix products: "bitonic" and "radix" sort, "gathertopk" and "indexselect" move rows.
    (MOVING, ("index", "gather", "scatter", "sort", "topk", "devicescan", "deviceselect", "embedding", "cumsum")),
    (DENSE, ("nvjet", "gemm", "gemv", "splitk", "cutlass", "cublas", "s16816", "aten::mm", "aten::bmm", "aten::addmm")),
    (ELEMENTWISE, ("elementwise", "norm", "reduce", "triton_", "softmax", "catarray", "memset", "memcpy dtod")),
    (ELEMENTWISE, ("multi_tensor", "foreach", "fill", "distribution", "aten::")),
)
"""The first group with a word that the name has, in lower case, is its group."""


@dataclass(frozen=True)
class Kernel:
    """One execution on the device."""

    name: str
    begin_us: float
    end_us: float


def group_of(name: str) -> str:
    """The group of a kernel, or of an operator where a CPU was profiled."""
    lower = name.lower()
    return next((group for group, words in _WORDS if any(word in lower for word in words)), OTHER)


def milliseconds(kernels: Iterable[Kernel]) -> Counter[str]:
    """Of each group; kernels that run side by side all count."""
    found: Counter[str] = Counter()
    for kernel in kernels:
        found[group_of(kernel.name)] += (kernel.end_us - kernel.begin_us) / 1e3  # type: ignore[assignment]
    return found


def busy_ms(kernels: Iterable[Kernel]) -> float:
    """Milliseconds in which anything ran."""
    total, until = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda kernel: kernel.begin_us):
        total += max(0.0, kernel.end_us - max(until, kernel.begin_us))
        until = max(until, kernel.end_us)
    return total / 1e3


def longest(kernels: Iterable[Kernel], count: int) -> list[tuple[str, float, int]]:
    """(name, milliseconds, executions) of those that take longest."""
    times: Counter[str] = Counter()
    executions: Counter[str] = Counter()
    for kernel in kernels:
        times[kernel.name] += kernel.end_us - kernel.begin_us  # type: ignore[assignment]
        executions[kernel.name] += 1
    return [(name, us / 1e3, executions[name]) for name, us in times.most_common(count)]


def read_trace(file: Path, device: bool) -> list[Kernel]:
    """Of a trace of torch.profiler: what ran on the device; else the operators that called no others."""
    events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    kinds = ("kernel", "gpu_memcpy", "gpu_memset") if device else ("cpu_op",)
    kernels = [
        Kernel(event["name"], float(event["ts"]), float(event["ts"]) + float(event["dur"]))
        for event in events
        if event.get("ph") == "X" and event.get("cat") in kinds
    ]
    kernels.sort(key=lambda kernel: (kernel.begin_us, -kernel.end_us))
    if device:
        return kernels
    after = [*kernels[1:], Kernel("", float("inf"), float("inf"))]
    return [kernel for kernel, following in zip(kernels, after, strict=True) if following.begin_us >= kernel.end_us]
