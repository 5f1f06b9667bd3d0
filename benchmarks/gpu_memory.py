"""The planner's memory of a GPU that trains, part by part, beside what a trainer alone on one takes at its peak.

    python -m benchmarks.gpu_memory [--sizes 0.1b 0.5b 1.2b] [--tokens 16384]

For each size a trainer with full recomputation and host Adam does an update of two micro-batches of so many tokens in
samples of 4,096. Predicted is r1hpc.plan's train phase without the sleeping engine; measured are torch's peaks during
the update, and the GPU's memory as the driver counts it after it, which still has what torch's allocator kept. What the
process takes besides (CUDA's context, kernels, NCCL) is a constant in the plan; it is printed as measured. About 75
seconds on an H200. Without a GPU: the tiny model, and live results of operators in place of the allocator's count.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from benchmarks.logprobs import LiveBytes
from benchmarks.random_trainer import Workload, on_gpu, synchronize, trainer, used_bytes, world
from benchmarks.training import run
from r1hpc.plan.plan import make_plan

OUTSIDE_TORCH = ("process groups", "trainer process")
"""Parts of the plan that torch's allocator does not hand out."""

TENSORS = ("weights", "gradients", "optimizer", "saved layer inputs", "saved layers", "layer in work", "logits")
"""The others, of a trainer; all that is left of the plan's train phase is a sleeping engine."""


@dataclass(frozen=True)
class Peak:
    """Bytes of a trainer."""

    resident: int
    """Weights and gradients, between updates."""
    allocated: int
    """At the peak of an update."""
    reserved: int
    used: int
    """By the whole process."""

    @property
    def outside(self) -> int:
        """Not from torch's allocator."""
        return self.used - self.reserved


def main() -> int:
    """Measure each size in a process of its own: communicators and graphs of an earlier trainer would count too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["0.1b", "0.5b", "1.2b"] if on_gpu() else ["tiny"])
    parser.add_argument("--tokens", type=int, default=16384 if on_gpu() else 512)
    options = parser.parse_args()
    if len(options.sizes) == 1:
        print(json.dumps(measure(options.sizes[0], options.tokens)))
        return 0
    figures: dict[str, float] = {}
    for size in options.sizes:
        figures |= run("benchmarks.gpu_memory", "--sizes", size, "--tokens", str(options.tokens))
    print(json.dumps(figures))
    return 0


def measure(size: str, tokens: int) -> dict[str, float]:
    """One size; prints its table."""
    before = used_bytes()
    length = min(4096 if on_gpu() else 64, tokens)
    workload = Workload(size, 2 * tokens // length, length, tokens)
    with world() as scratch:
        figures = process_constants(before)
        for name, value in figures.items():
            print(f"{name:<24} {value:.3f} GB")
        predicted, peak = predicted_parts(workload, scratch), measured_peak(workload, scratch, before)
        figures |= report(size, predicted, peak)
    return {name: round(value, 4) for name, value in figures.items()}


def predicted_parts(workload: Workload, scratch: Path) -> dict[str, int]:
    """Bytes of the train phase by part."""
    plan = make_plan(workload.config(scratch), workload.shape)
    (stage,) = plan.phase("train").stages
    return {part.name: part.bytes for part in stage.parts if part.name in (*TENSORS, *OUTSIDE_TORCH)}


def measured_peak(workload: Workload, scratch: Path, before: int) -> Peak:
    """Of an update after a first one."""
    with trainer(workload, scratch) as actor:
        samples = workload.make_samples()
        resident = sum(buffer.nbytes for buffer in actor.memory._sizes)
        if not on_gpu():
            with LiveBytes() as live:
                actor.update(samples, 0)
            return Peak(resident, resident + live.peak, resident + live.peak, resident + live.peak)
        actor.update(samples, 0)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        actor.update(samples, 1)
        synchronize()
        reserved, used = torch.cuda.memory_reserved(), used_bytes() - before
        return Peak(resident, torch.cuda.max_memory_allocated(), reserved, used)


def process_constants(before: int) -> dict[str, float]:
    """GB that the process takes before it has a model: CUDA's context, then NCCL's first communicator."""
    tensor = torch.ones(1 << 20, device="cuda" if on_gpu() else "cpu")
    tensor.add_(1)
    synchronize()
    context = outside_torch(before)
    dist.all_reduce(tensor)
    synchronize()
    return {"context_gb": context / 1e9, "nccl_gb": (outside_torch(before) - context) / 1e9}


def outside_torch(before: int) -> int:
    """Bytes that this process has of the GPU and torch's allocator does not know of."""
    return used_bytes() - before - torch.cuda.memory_reserved() if on_gpu() else 0


def report(size: str, predicted: Mapping[str, int], peak: Peak) -> dict[str, float]:
    """Print one size's table; its figures."""
    tensors = sum(value for name, value in predicted.items() if name not in OUTSIDE_TORCH)
    resident = sum(predicted.get(name, 0) for name in ("weights", "gradients", "optimizer"))
    process = sum(predicted.values())
    rows = {
        "weights, gradients": (resident, peak.resident),
        "activations, logits at the peak": (tensors - resident, peak.allocated - peak.resident),
        "all tensors (allocated)": (tensors, peak.allocated),
        "all tensors (reserved)": (tensors, peak.reserved),
        "context, kernels, process groups": (process - tensors, peak.outside),
        "process": (process, peak.used),
    }
    print(f"\n{size}: " + ", ".join(f"{name} {value / 1e9:.3f}" for name, value in predicted.items()))
    print("| GB | predicted | measured | ratio |\n|---|---|---|---|")
    for name, (plan, found) in rows.items():
        print(f"| {name} | {plan / 1e9:.3f} | {found / 1e9:.3f} | {_ratio(plan, found)} |")
    return {
        f"{size}_predicted_gb": process / 1e9,
        f"{size}_measured_gb": peak.used / 1e9,
        f"{size}_tensors_ratio": tensors / peak.allocated,
        f"{size}_process_ratio": process / peak.used,
        f"{size}_outside_gb": peak.outside / 1e9,
    }


def _ratio(predicted: int, measured: int) -> str:
    return f"{predicted / measured:.3f}" if measured else ""


if __name__ == "__main__":
    raise SystemExit(main())
