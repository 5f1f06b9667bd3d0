"""Micro-batches through this rank's pipeline stage: forward for log-probs, or forward and backward for the loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from r1hpc.train.grpo import Loss
from r1hpc.train.logprobs import Entropy, TokenLogprobs, gather_hidden, token_logprobs
from r1hpc.train.microbatch import MicroBatch
from r1hpc.train.normalization import MetricSums

LossFunction = Callable[[int, TokenLogprobs], Loss]
"""Of the number of the micro-batch and the log-probs of its trained tokens."""


class Passes:
    """The model of one rank and how its logits are read. Every method is collective."""

    def __init__(self, model: DistributedDataParallel, *, temperature: float, chunk: int) -> None:
        """temperature: of the rollout, which divides all logits. chunk: tokens whose logits exist at once."""
        self.model = model
        self.temperature = temperature
        self.chunk = chunk

    @torch.no_grad()
    def logprobs(self, batches: Sequence[MicroBatch]) -> list[Tensor]:
        """[N] float32 for each micro-batch: the log-probs of its trained tokens; empty but on the last stage."""

        def collect(output: Tensor, non_loss_data: bool) -> Tensor:
            return output[0]

        found: list[Tensor] = self._run(batches, lambda number: collect, Entropy.OFF, forward_only=True)
        return found

    def backward(self, batches: Sequence[MicroBatch], loss: LossFunction, entropy: Entropy) -> list[MetricSums]:
        """Add the loss's gradient to the model's gradient buffers, finalize it; the metrics, on the last stage."""

        def scored(number: int, output: Tensor) -> tuple[Tensor, Tensor, MetricSums]:
            found = loss(number, TokenLogprobs(output[0], None if entropy is Entropy.OFF else output[1]))
            return found.total, found.divisor, found.metrics

        metrics: list[MetricSums] = self._run(
            batches, lambda number: partial(scored, number), entropy, forward_only=False
        )
        return metrics

    def _run(
        self,
        batches: Sequence[MicroBatch],
        on_output: Callable[[int], Callable[..., Any]],
        entropy: Entropy,
        forward_only: bool,
    ) -> list[Any]:
        """What Megatron's schedule collects on the last stage; an empty list on the others."""

        def forward_step(
            numbered: Iterator[tuple[int, MicroBatch]], model: DistributedDataParallel
        ) -> tuple[Tensor, Callable[..., Any]]:
            number, batch = next(numbered)
            output = model(
                input_ids=batch.tokens[None],
                position_ids=batch.sequences.positions[None],
                attention_mask=None,
                packed_seq_params=batch.sequences,
                output_processor=partial(self._score, batch, entropy),
            )
            if forward_only:
                batch.sequences.computed.clear()
            return output, on_output(number)

        collected: list[Any] = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=enumerate(batches),
            model=[self.model],
            num_microbatches=len(batches),
            # Lengths vary, and each stage is told them: this one is only asked to be divisible.
            seq_length=parallel_state.get_tensor_model_parallel_world_size(),
            micro_batch_size=1,
            forward_only=forward_only,
            collect_non_loss_data=forward_only,
        )
        # Tables of positions, made anew when the micro-batch is used again: all of an update's would be gigabytes.
        for batch in batches:
            batch.sequences.computed.clear()
        return collected

    def _score(
        self, batch: MicroBatch, entropy: Entropy, *, hidden_states: Tensor, output_layer: Any, **_: Any
    ) -> Tensor:
        """[1 or 2, N]: log-probs and entropies of the trained tokens. Takes the place of the model's logits."""
        scored = token_logprobs(
            gather_hidden(hidden_states),
            output_layer.weight,
            batch.targets[batch.rows],
            batch.rows,
            temperature=self.temperature,
            group=parallel_state.get_tensor_model_parallel_group(),
            chunk=self.chunk,
            entropy=entropy,
        )
        parts = [scored.logprobs] if scored.entropy is None else [scored.logprobs, scored.entropy]
        return torch.stack(parts)
