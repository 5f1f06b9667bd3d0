"""The numbers of an optimizer step, summed over every rank that holds a part of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from r1hpc.train.normalization import MetricSums


def reduce_metrics(sums: Iterable[MetricSums], device: torch.device) -> dict[str, float]:
    """The metrics of all micro-batches of all ranks, the same on every rank. Collective.

    The last stage's first tensor rank speaks for its stage: the others have the same numbers, or none.
    """
    speaks = parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0
    total = MetricSums.total(sums) if speaks else MetricSums.empty()
    added, maxima = total.sums.to(device), total.maxima.to(device)
    # Not the default group, which stays while the trainer sleeps and is to keep no memory of a GPU.
    world = parallel_state.get_intra_distributed_optimizer_instance_group()
    dist.all_reduce(added, op=dist.ReduceOp.SUM, group=world)
    dist.all_reduce(maxima, op=dist.ReduceOp.MAX, group=world)
    return MetricSums(added, maxima).values()
