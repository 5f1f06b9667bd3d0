"""Seconds that a rank plans syncs of DeepSeek-R1 on 128 GPUs, before a byte is moved; on a CPU.

    python -m benchmarks.sync_planning

Who puts which of 45,000 weights together is found once in an attempt; how they are packed for the engines, once for
the same engines. The layout is nearly that of configs/r1.yaml: four pipeline stages of 32 ranks, eight experts a layer
on each, all other matrices cut for tensor parallelism of eight; two engines of 64 GPUs. Medians of 3. Loads no model.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from r1hpc.checkpoint.boxes import Box, whole
from r1hpc.checkpoint.names import TensorName, by_key, tensors
from r1hpc.plan import ModelShape, read_model_shape
from r1hpc.sync.catalog import Assembly, Holding, plan_assemblies
from r1hpc.sync.form import SyncForm
from r1hpc.sync.outline import SyncTarget
from r1hpc.sync.packings import Packings

MODEL = Path(__file__).parents[1] / "configs" / "models" / "deepseek-r1"
STAGES, STAGE_RANKS, TP = 4, 32, 8
BUCKET_BYTES = 512 << 20
ENGINES = tuple(SyncTarget(f"engine{engine}", tuple(range(64 * engine, 64 * engine + 64)), 64) for engine in range(2))
REPETITIONS = 3

Found = TypeVar("Found")


def main() -> int:
    """Measure and report."""
    shape = read_model_shape(MODEL)
    everyones = holdings_of_r1(shape)
    assemblies, plan_s = timed(lambda: plan_assemblies(shape, everyones))
    _, first_s = timed(lambda: begun(packings(assemblies, shape), 0))
    known = packings(assemblies, shape)
    begun(known, 0)
    _, later_s = timed(lambda: begun(known, 1))
    print(f"{len(assemblies):,} weights, held by {len(everyones)} ranks in {sum(map(len, everyones)):,} parts\n")
    print("| what | seconds |")
    print("|---|---|")
    print(f"| who puts which weight together, once | {plan_s:.3f} |")
    print(f"| packing for the engines, the first time | {first_s:.3f} |")
    print(f"| the same in every sync after it | {later_s:.6f} |")
    print(json.dumps({"plan_s": round(plan_s, 4), "first_s": round(first_s, 4), "later_s": round(later_s, 6)}))
    return 0


def timed(work: Callable[[], Found]) -> tuple[Found, float]:
    """What it returns, and the median of its seconds."""
    seconds = []
    for _ in range(REPETITIONS):
        began = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - began)
    return found, statistics.median(seconds)


def packings(assemblies: Sequence[Assembly], shape: ModelShape) -> Packings:
    """Of which nothing is known yet."""
    return Packings(assemblies, SyncForm.FP8, shape.num_experts, BUCKET_BYTES)


def begun(known: Packings, number: int) -> None:
    """What a sync needs of them."""
    known.samples(number, known.to(ENGINES).routes)


def holdings_of_r1(shape: ModelShape) -> list[list[Holding]]:
    """What each of 128 ranks holds."""
    found: list[list[Holding]] = [[] for _ in range(STAGES * STAGE_RANKS)]
    for key, names in by_key(tensors(replace(shape, num_mtp_layers=0))).items():
        dtype = torch.float32 if names[0].float32 else torch.bfloat16
        first = STAGE_RANKS * stage_of(names[0])
        for rank in range(STAGE_RANKS):
            box = box_of(names[0], rank)
            holding = Holding(first + rank, f"module.{key}", 0, key, names[0].global_shape, box, dtype)
            found[first + rank].append(holding)
    return found


def stage_of(name: TensorName) -> int:
    """The pipeline stage, of sixteen layers or what is left of them."""
    if name.layer is None:
        return 0 if "embed" in name.hf else STAGES - 1
    return min(name.layer // 16, STAGES - 1)


def box_of(name: TensorName, rank: int) -> Box:
    """What a rank of the stage holds of a tensor."""
    rows, *rest = name.global_shape
    if name.expert is not None:
        each = rows // STAGE_RANKS
        return Box((rank * each, *(0 for _ in rest)), (each, *rest))
    if rest and rows % TP == 0 and name.quantized:
        each = rows // TP
        return Box((rank % TP * each, *(0 for _ in rest)), (each, *rest))
    return whole(name.global_shape)


if __name__ == "__main__":
    raise SystemExit(main())
