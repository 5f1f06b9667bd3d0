"""The numbers of an optimizer step, summed over every rank that holds a part of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from r1hpc.train.normalization import MetricSums


@dataclass(frozen=True)
class StepStats:
    """One optimizer step."""

    step: int
    """Optimizer steps that the run has done with it."""
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    num_micro_batches: int
    """Of each data-parallel rank."""
    num_tokens: int
    """Raw, of all samples of the step."""
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    """loss, and what else the loss reports."""


@dataclass(frozen=True)
class UpdateStats:
    """What became of one rollout."""

    rollout_id: int
    steps: tuple[StepStats, ...]
    seconds: Mapping[str, float]
    """By part: pack, ref_logprobs, old_logprobs, steps, backup."""

    @property
    def tokens_per_s(self) -> float:
        """Raw tokens trained on, over the seconds of the steps."""
        seconds = sum(step.seconds for step in self.steps)
        return sum(step.num_tokens for step in self.steps) / seconds if seconds else 0.0


def reduce_metrics(sums: Iterable[MetricSums], device: torch.device) -> dict[str, float]:
    """The metrics of all micro-batches of all ranks, the same on every rank. Collective.

    The last stage's first tensor rank speaks for its stage: the others have the same numbers, or none.
    """
    speaks = parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0
    total = MetricSums.total(sums) if speaks else MetricSums.empty()
    added, maxima = total.sums.to(device), total.maxima.to(device)
    dist.all_reduce(added, op=dist.ReduceOp.SUM)
    dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
    return MetricSums(added, maxima).values()
