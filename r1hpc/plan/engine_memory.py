"""Bytes of an engine on one GPU: while it generates, and while it sleeps."""

from __future__ import annotations

from r1hpc.plan.assumptions import Assumptions
from r1hpc.plan.engine import EnginePlan
from r1hpc.plan.memory import MemoryPart, parts


def engine_awake(engine: EnginePlan, device: Assumptions) -> tuple[MemoryPart, ...]:
    """What an engine has of a GPU at its peak."""
    groups = engine_kept_bytes(engine, device) - device.engine_process_bytes
    return parts(
        MemoryPart("engine weights", engine.weight_bytes, engine.form.name),
        MemoryPart(
            "KV cache", engine.kv_bytes, f"{engine.kv_tokens_per_rank:,} tokens x {engine.kv_bytes_per_token:,} B"
        ),
        MemoryPart("CUDA graphs", engine.graph_bytes),
        MemoryPart("prefill activations", engine.prefill_bytes),
        MemoryPart("engine groups, DeepEP" if engine.grid.deepep else "engine groups", groups),
        MemoryPart("engine process", device.engine_process_bytes),
    )


def engine_asleep(engine: EnginePlan, device: Assumptions) -> tuple[MemoryPart, ...]:
    """What it keeps while the trainer has the GPU: all of it where nothing sleeps."""
    if not device.sleeps:
        return engine_awake(engine, device)
    buffers = "context, process groups" + (", DeepEP buffers" if engine.grid.deepep else "")
    return (MemoryPart("sleeping engine", engine_kept_bytes(engine, device), buffers),)


def engine_kept_bytes(engine: EnginePlan, device: Assumptions) -> int:
    """Of its process, its groups and DeepEP: what no release gives back."""
    deepep = device.deepep_bytes if engine.grid.deepep else 0
    return device.engine_process_bytes + device.engine_groups.of(engine.grid.gpus) + deepep
