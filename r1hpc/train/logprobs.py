"""Log-probs of chosen tokens straight from hidden states: the logits never exist but for a chunk of rows at a time.

The backward pass makes a chunk's logits again, turns them into their own gradient in place, and multiplies it with the
weight and the hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from r1hpc.train.sharded_softmax import Softmax, Target, fill_statistics, logits_to_gradient_, merged, slopes_of


class Entropy(Enum):
    """What is wanted of the entropy."""

    OFF = "off"
    VALUE = "value"
    """A metric: without a gradient, so nothing is kept for one."""
    GRADIENT = "gradient"
    """Part of the loss."""


@dataclass(frozen=True)
class TokenLogprobs:
    """What the policy thinks of N tokens. float32; float64 from float64 hidden states."""

    logprobs: Tensor
    """[N] of the targets, at the given temperature."""
    entropy: Tensor | None
    """[N] of the whole distribution, at the given temperature; null when off."""


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    rows: Tensor | None = None,
    *,
    temperature: float,
    group: dist.ProcessGroup | None = None,
    chunk: int,
    entropy: Entropy = Entropy.OFF,
) -> TokenLogprobs:
    """Log-probs of `targets` under softmax(hidden[rows] @ weight.T / temperature).

    hidden: [T, H]; weight: [V / tp, H], this rank's shard of the vocabulary, in rank order; targets: [N] int64;
    rows: [N] int64, the row of `hidden` for each target, or null for all rows in order (N = T).
    Collective over `group` (null: the vocabulary is not sharded), once, and not in the backward pass: every rank passes
    equal hidden states, targets and rows and gets equal results. The gradient of `hidden` is this shard's part, to be
    summed over the group, which the backward of `gather_hidden` does; that of `weight` is complete.
    `chunk` rows of logits, in the dtype of `hidden`, exist at once, and half as many in float32. The gradient of
    `weight` is summed in float32 and rounded once, which at R1's sizes takes more memory than a chunk.
    With N = 0 the results are empty but part of the graph: backward through them gives zero gradients.
    """
    apply: Any = _TokenLogprobs.apply
    return TokenLogprobs(*apply(hidden, weight, targets, rows, temperature, group, chunk, entropy))


def gather_hidden(hidden: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """[T, H] of every tensor rank's [T / tp, 1, H]: all rows for each vocabulary shard; backward sums their gradients.

    Collective over the tensor-parallel group (null: Megatron's own), whose ranks share the sequence wherever there is
    more than one; a rank alone has it whole.
    """
    # Imported late: it takes seconds, and everything else here is plain torch.
    from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region

    gathered: Tensor = gather_from_sequence_parallel_region(hidden, tensor_parallel_output_grad=True, group=group)
    return gathered.squeeze(1)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        rows: Tensor | None,
        temperature: float,
        group: dist.ProcessGroup | None,
        chunk: int,
        entropy: Entropy,
    ) -> tuple[Tensor, Tensor | None]:
        target = Target.of(targets, len(weight), 0 if group is None else group.rank())
        count = 3 if entropy is Entropy.OFF else 4
        statistics = hidden.new_empty(count, len(targets), dtype=_wide(hidden.dtype))
        for part in _chunks(len(targets), chunk):
            logits = _rows_of(hidden, rows, part) @ weight.t()
            fill_statistics(statistics[:, part], logits, target[part], temperature)
            # Freed before the next chunk's are made.
            del logits
        whole = merged(statistics, group, temperature)
        ctx.save_for_backward(
            hidden, weight, rows, target.here, target.column, whole.logprobs, whole.shift, whole.entropy
        )
        ctx.temperature, ctx.chunk, ctx.entropy = temperature, chunk, entropy
        if entropy is Entropy.VALUE:
            ctx.mark_non_differentiable(whole.entropy)
        return whole.logprobs, whole.entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropy: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, rows, here, column, *softmax = ctx.saved_tensors
        target, whole = Target(here, column), Softmax(*softmax)
        by_entropy = grad_entropy if ctx.entropy is Entropy.GRADIENT else None
        slopes = slopes_of(whole, grad_logprobs, by_entropy, ctx.temperature)
        want_hidden, want_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=_wide(weight.dtype)) if want_weight else None
        for part in _chunks(len(column), ctx.chunk):
            inputs = _rows_of(hidden, rows, part)
            grad_logits = inputs @ weight.t()
            logits_to_gradient_(grad_logits, target[part], whole.shift[part], slopes[part], ctx.temperature)
            if grad_hidden is not None:
                _add_rows(grad_hidden, grad_logits @ weight, rows, part)
            if grad_weight is not None:
                _add_product(grad_weight, grad_logits.t(), inputs)
            del grad_logits
        if grad_weight is not None:
            grad_weight = grad_weight.to(weight.dtype)
        return grad_hidden, grad_weight, None, None, None, None, None, None


def _rows_of(hidden: Tensor, rows: Tensor | None, part: slice) -> Tensor:
    return hidden[part] if rows is None else hidden[rows[part]]


def _add_rows(total: Tensor, addend: Tensor, rows: Tensor | None, part: slice) -> None:
    if rows is None:
        total[part] = addend
    else:
        total.index_add_(0, rows[part], addend)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, summed in the dtype of total: a GPU multiplies bf16 into float32, a CPU must widen."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    elif total.is_cuda:
        torch.addmm(total, left, right, out_dtype=total.dtype, out=total)
    else:
        total.addmm_(left.to(total.dtype), right.to(total.dtype))


def _chunks(length: int, step: int) -> Iterator[slice]:
    return (slice(begin, begin + step) for begin in range(0, length, step))


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are taken in: float32, or float64 where the model is that."""
    return torch.promote_types(dtype, torch.float32)
