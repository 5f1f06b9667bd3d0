"""What sleeping and waking cost a trainer, beside plain copies of as many bytes; what memory it keeps asleep.

    python -m benchmarks.offload [--size 1.2b]

One trainer on one GPU, full recomputation, host Adam. Seconds of sleep, of wake, and of the copy of the weights to the
host that ends each update; GB/s of the bytes of the weights, beside one copy of as many bytes from and to pinned
memory. Then the GPU's memory before a first update and after it, awake and asleep, as torch and as the driver count it.
About 45 seconds on an H200, most of it imports and pinning; without a GPU the tiny model.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.host_copy import best_seconds
from benchmarks.random_trainer import Workload, on_gpu, parameters, synchronize, trainer, used_bytes, world
from r1hpc.train.actor import TrainActor
from r1hpc.train.arena import Arena, TensorSpec

REPETITIONS = 4


@dataclass(frozen=True)
class Memory:
    """Of the GPU, in bytes; zeros without one."""

    allocated: int
    """In use, as torch counts."""
    reserved: int
    """Kept by torch's allocator."""
    used: int
    """Of the whole GPU, as the driver counts, beyond what was used before this process came."""

    @classmethod
    def now(cls, before: int) -> Memory:
        synchronize()
        if not on_gpu():
            return cls(0, 0, 0)
        return cls(torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), used_bytes() - before)


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="1.2b" if on_gpu() else "tiny")
    figures = measure(parser.parse_args().size)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    return 0


def measure(size: str) -> dict[str, float]:
    """Every figure; prints the tables."""
    before = used_bytes()
    workload = Workload(size, 4, 4096, 16384) if on_gpu() else Workload(size, 4, 64, 128)
    with world() as scratch, trainer(workload, scratch) as actor:
        moments = {"loaded": Memory.now(before)}
        actor.sleep()
        moments["asleep, never trained"] = Memory.now(before)
        actor.wake()
        actor.update(workload.make_samples(), 0)
        moments["trained"] = Memory.now(before)
        actor.sleep()
        moments["asleep, trained"] = Memory.now(before)
        actor.wake()
        moments["woken"] = Memory.now(before)
        print("| moment | allocated, GB | reserved, GB | used of the GPU, GB |\n|---|---|---|---|")
        for name, memory in moments.items():
            print(f"| {name} | {memory.allocated / 1e9:.3f} | {memory.reserved / 1e9:.3f} | {memory.used / 1e9:.3f} |")
        figures = times(actor)
        figures["parameters_b"] = parameters(actor) / 1e9
    asleep = moments["asleep, trained"]
    return figures | {
        "asleep_allocated_gb": asleep.allocated / 1e9,
        "asleep_reserved_gb": asleep.reserved / 1e9,
        "asleep_used_gb": asleep.used / 1e9,
        "awake_used_gb": moments["trained"].used / 1e9,
    }


def times(actor: TrainActor) -> dict[str, float]:
    """Seconds, and GB/s of the weights' bytes beside plain copies; prints a table."""
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in actor.weights.tensors("actor").values())
    gigabytes = size_bytes / 1e9
    down_s, up_s = plain_copies(size_bytes)
    sleeping, waking = [], []
    for _ in range(REPETITIONS):
        sleeping.append(seconds(actor.sleep))
        waking.append(seconds(actor.wake))
    rows = {
        "sleep": (min(sleeping), 0.0, 0.0),
        "wake": (min(waking), gigabytes, up_s),
        "backup": (min(seconds(actor._copy_to_host) for _ in range(REPETITIONS)), gigabytes, down_s),
    }
    print(f"\n{gigabytes:.3f} GB of weights; the buffers given up: {actor.memory.size_bytes / 1e9:.3f} GB")
    print("| what | s | GB copied | GB/s | plain copy GB/s | share |\n|---|---|---|---|---|---|")
    figures = {"weights_gb": gigabytes, "copy_down_gb_s": gigabytes / down_s, "copy_up_gb_s": gigabytes / up_s}
    for name, (spent, copied, plain_s) in rows.items():
        print(
            f"| {name} | {spent:.4f} | {copied:.3f} | {copied / spent:.1f} |"
            + (f" {copied / plain_s:.1f} | {plain_s / spent:.2f} |" if plain_s else " | |")
        )
        figures |= {f"{name}_s": spent} | ({f"{name}_share": plain_s / spent} if plain_s else {})
    return figures


def plain_copies(size_bytes: int) -> tuple[float, float]:
    """Seconds of one copy of so many bytes from the device to pinned memory, and back."""
    arena = Arena([TensorSpec((size_bytes,), torch.uint8)], torch.device("cpu"), pinned=on_gpu())
    (host,) = arena.tensors
    device = torch.ones(size_bytes, dtype=torch.uint8, device="cuda" if on_gpu() else "cpu")

    def finished(copy: Callable[[], object]) -> Callable[[], None]:
        def work() -> None:
            copy()
            synchronize()

        return work

    down = best_seconds(finished(lambda: host.copy_(device, non_blocking=True)), REPETITIONS)
    up = best_seconds(finished(lambda: device.copy_(host, non_blocking=True)), REPETITIONS)
    arena.close()
    return down, up


def seconds(work: Callable[[], object]) -> float:
    """From an idle device to an idle one."""
    synchronize()
    begin = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - begin


if __name__ == "__main__":
    raise SystemExit(main())
