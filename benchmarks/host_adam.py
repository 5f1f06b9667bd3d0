"""Seconds and GB/s of host Adam beside plain copies of host memory, and of the bus, in the same process.

    python -m benchmarks.host_adam [--billions 1.2] [--threads 8 16] [--pieces 4]

bf16 weights and float32 gradients on the GPU, masters and moments pinned in host memory, copies overlapped, as in the
recipe; parameters as of a layer of R1's experts. For each number of threads: the whole step, the kernel alone (its
gradients in host memory already), and what the host's memory and the bus give at best. GB/s of Adam count 28 bytes a
value: gradient, master and both moments read, the latter three written. The better of copy and add is the limit.
About 60 seconds on an H200's host, half of it pinning; without a GPU 20 million parameters, and no bus: 10 seconds.
The state of 1.2 billion takes 14.4 GB of host memory, the kernel's gradients 4.8, the plain copies 4.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.host_copy import best_seconds, host_rates
from r1hpc.plan.assumptions import ADAM_TRAFFIC_BYTES
from r1hpc.train.arena import Arena, TensorSpec
from r1hpc.train.host_adam import HostAdam, _adamw

R1_PER_NODE = 46.5e9
"""Parameters whose state a node of the fullest stage keeps: configs/r1.yaml."""
EXPERT_MATRICES = 2048 * 7168
MI = 1 << 20


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--billions", type=float, default=1.2 if torch.cuda.is_available() else 0.02)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({max(1, cores // 2), cores}))
    parser.add_argument("--pieces", type=float, nargs="+", default=[4.0], help="Mi values of a piece, in turn")
    options = parser.parse_args()
    figures: dict[str, float] = {"parameters_b": options.billions, "cores": cores}
    if torch.cuda.is_available():
        figures |= bus_rates()
        print("bus: " + ", ".join(f"{name} {figures[name]:.1f}" for name in figures if name.startswith("bus_")))
    print(
        "| threads | piece, Mi | copy GB/s | add GB/s | scale GB/s | kernel s | kernel GB/s | of the limit | step s"
        " | step GB/s | of the limit | R1's step s, a node of these cores |"
    )
    print("|" + "---|" * 12)
    limits = {}
    for threads in options.threads:
        torch.set_num_threads(threads)
        limits[threads] = host_rates(2_000_000_000 if options.billions > 0.5 else 100_000_000)
    for number, piece in enumerate(options.pieces):
        adam = make_adam(int(options.billions * 1e9), int(piece * MI))
        for threads in options.threads:
            torch.set_num_threads(threads)
            found = row(adam, threads, piece, limits[threads])
            suffix = f"_t{threads}" + (f"_p{piece:g}" if number else "")
            figures |= {f"{name}{suffix}": value for name, value in found.items()}
        adam.close()
        del adam
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
    return 0


def row(adam: HostAdam, threads: int, piece: float, limits: dict[str, float]) -> dict[str, float]:
    """Measure one number of threads and print its row."""
    parameters = sum(shard.param.numel() for shard in adam.shards)
    moved = ADAM_TRAFFIC_BYTES * parameters / 1e9
    limit = max(limits["copy"], limits["add"])
    kernel_s, step_s = kernel_seconds(adam), best_seconds(adam.step, 3)
    figures = {
        **{f"{name}_gb_s": rate for name, rate in limits.items()},
        "kernel_s": kernel_s,
        "kernel_gb_s": moved / kernel_s,
        "kernel_share": moved / kernel_s / limit,
        "step_s": step_s,
        "step_gb_s": moved / step_s,
        "step_share": moved / step_s / limit,
        # Bytes over what was measured. A node has more cores, which share more memory channels: with n times these
        # cores and channels it is 1 / n of this.
        "r1_step_s": ADAM_TRAFFIC_BYTES * R1_PER_NODE / 1e9 / (moved / step_s),
    }
    print(f"| {threads} | {piece:g} | " + " | ".join(f"{value:.2f}" for value in figures.values()) + " |", flush=True)
    return figures


def make_adam(parameters: int, piece_elements: int) -> HostAdam:
    """Of matrices as large as those of R1's experts, on the GPU where there is one, with gradients."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = [min(EXPERT_MATRICES, parameters - begin) for begin in range(0, parameters, EXPERT_MATRICES)]
    torch.manual_seed(0)
    params = [torch.randn(size, device=device).mul_(0.02).bfloat16() for size in sizes]
    adam = HostAdam(
        [{"params": params, "weight_decay": 0.1}],
        betas=(0.9, 0.98),
        eps=1e-8,
        offload=True,
        overlap=True,
        piece_elements=piece_elements,
    )
    adam.allocate()
    for shard in adam.shards:
        shard.param.decoupled_grad = torch.randn(shard.param.shape, device=device)  # type: ignore[attr-defined]
    for group in adam.param_groups:
        group["lr"] = 1e-6
    return adam


def kernel_seconds(adam: HostAdam) -> float:
    """Of the same updates with gradients in host memory already, and no weights sent anywhere."""
    pieces = list(adam._pieces())
    gradients = [torch.full((len(piece.master),), 1e-3) for piece in pieces]
    group = adam.param_groups[0]
    count = torch.ones(())

    def run() -> None:
        for piece, gradient in zip(pieces, gradients, strict=True):
            _adamw(piece, gradient, group, count)

    return best_seconds(run, 3)


def bus_rates() -> dict[str, float]:
    """GB/s of copies of 1 GB between GPU and pinned memory, each way, and of both at once, each way."""
    size = 1_000_000_000
    arena = Arena([TensorSpec((size,), torch.uint8)] * 2, torch.device("cpu"), pinned=True)
    host, other = arena.tensors
    device, second = (torch.empty(size, dtype=torch.uint8, device="cuda") for _ in range(2))
    streams: Sequence[torch.cuda.Stream] = [torch.cuda.Stream() for _ in range(2)]  # type: ignore[no-untyped-call]

    def copy(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
        for stream, (target, source) in zip(streams, pairs, strict=False):
            with torch.cuda.stream(stream):
                target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()

    ways = {"down": [(host, device)], "up": [(second, other)], "both": [(host, device), (second, other)]}
    rates = {f"bus_{way}_gb_s": size / best_seconds(lambda: copy(pairs), 3) / 1e9 for way, pairs in ways.items()}  # noqa: B023
    arena.close()
    return rates


if __name__ == "__main__":
    raise SystemExit(main())
