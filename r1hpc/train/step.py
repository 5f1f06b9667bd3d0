"""One optimizer step: forward and backward of its micro-batches, the check, the reduction, the update."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from r1hpc.config.training import GrpoConfig
from r1hpc.train.grpo import Loss, LossInputs, grpo_loss
from r1hpc.train.learning_rate import LearningRate
from r1hpc.train.logprobs import Entropy, TokenLogprobs
from r1hpc.train.microbatch import MicroBatch
from r1hpc.train.optimizer import TrainOptimizer
from r1hpc.train.passes import Passes
from r1hpc.train.schedule import StepBatches
from r1hpc.train.stats import reduce_metrics
from r1hpc.train.update_stats import StepStats


@dataclass(frozen=True)
class StepInputs:
    """What the loss needs besides the micro-batches; lists go with those, and are empty but on the last stage."""

    advantages: Tensor
    """[samples of the rollout] float32, on the device."""
    old_logprobs: Sequence[Tensor] = ()
    """[N] of each micro-batch's trained tokens; none: those of this step's own pass."""
    ref_logprobs: Sequence[Tensor] = ()
    """[N] of the reference; none: no KL."""


class Stepper:
    """Takes optimizer steps. Every method is collective."""

    def __init__(
        self, passes: Passes, optimizer: TrainOptimizer, learning_rate: LearningRate, config: GrpoConfig
    ) -> None:
        self.passes = passes
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.config = config

    def step(self, batches: StepBatches, inputs: StepInputs) -> StepStats:
        """Train on the micro-batches once.

        Raises GradientError or OptimizerError, on every rank, with weights and optimizer as they were.
        """
        began = time.monotonic()
        metrics = self.accumulate(batches.micro_batches, inputs)
        rate = self.learning_rate.value
        accumulated = time.monotonic()
        outcome = self.optimizer.step(rate)
        stepped = time.monotonic()
        self.learning_rate.advance(self.optimizer.num_steps)
        return StepStats(
            step=self.optimizer.num_steps,
            learning_rate=rate,
            grad_norm=outcome.grad_norm,
            num_micro_batches=len(batches.micro_batches),
            num_tokens=batches.num_tokens,
            seconds=stepped - began,
            optimizer_seconds=stepped - accumulated,
            metrics=metrics,
        )

    def accumulate(self, batches: Sequence[MicroBatch], inputs: StepInputs) -> Mapping[str, float]:
        """Leave the step's gradient, checked and reduced, in the optimizer's shards; the metrics of all ranks."""
        self.optimizer.zero_grad()

        def loss(number: int, scored: TokenLogprobs) -> Loss:
            return grpo_loss(_loss_inputs(batches[number], scored, inputs, number), self.config)

        entropy = Entropy.GRADIENT if self.config.entropy_coef else Entropy.VALUE
        return reduce_metrics(self.passes.backward(batches, loss, entropy), batches[0].tokens.device)


def _loss_inputs(batch: MicroBatch, scored: TokenLogprobs, inputs: StepInputs, number: int) -> LossInputs:
    """The trained tokens of a micro-batch."""
    rows = batch.rows
    sample_of = batch.sample_of[rows]
    # Views, not an index tensor: that would be copied to the device, and the host would wait for it.
    advantages = torch.stack([inputs.advantages[place] for place in batch.samples])
    return LossInputs(
        logprobs=scored.logprobs,
        advantages=advantages[sample_of],
        loss_mask=batch.loss_mask[rows],
        sample_of=sample_of,
        mask_sums=batch.mask_sums,
        cp_rank=batch.sequences.cp_rank,
        old_logprobs=inputs.old_logprobs[number] if inputs.old_logprobs else None,
        ref_logprobs=inputs.ref_logprobs[number] if inputs.ref_logprobs else None,
        rollout_logprobs=None if batch.rollout_logprobs is None else batch.rollout_logprobs[rows],
        entropy=scored.entropy,
    )
