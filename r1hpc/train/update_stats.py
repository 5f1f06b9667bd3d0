"""The numbers of an update, as the driver is sent them. Loads no torch, nor does what reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
    optimizer_seconds: float = 0.0
    """Of those above, once the gradient was there: its norm, Adam on the host, the new weights to all ranks."""


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
