"""Ranks of a layout as forked processes on gloo, prepared for the CPU, with Megatron's groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from r1hpc.model import compat
from r1hpc.model.parallel import Layout
from tests.forked_ranks import Result, fork_ranks, join_gloo

DEADLINE_S = 60.0


def on_ranks(
    work: Callable[[], Result], layout: Layout, directory: Path, world_size: int | None = None
) -> list[Result]:
    """What `work()` returns on each rank; `directory` is where they meet."""
    ranks = world_size or layout.model_size
    rendezvous = directory / "rendezvous"
    rendezvous.unlink(missing_ok=True)

    def on_rank(rank: int) -> Result:
        compat.prepare("cpu")
        join_gloo(rank, ranks, rendezvous, DEADLINE_S)
        layout.initialize()
        answer = work()
        # A rank that left now would close the connections of one that is still making its groups.
        dist.barrier()
        return answer

    return fork_ranks(on_rank, ranks, DEADLINE_S)
