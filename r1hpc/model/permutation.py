"""Tokens to the order of their experts and back, in the signatures of megatron-core's functions of the same names.

Upstream adds a token's rows up with atomic operations in the dtype of the activations, unless Transformer Engine is
there: in bfloat16 a sum is rounded once a row, in an order that changes from run to run. Here each token's rows are
gathered and summed in float32, forward after the experts and backward before them.
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.transformer.moe import moe_utils
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def permute(
    tokens: Tensor, routing_map: Tensor, probs: Tensor | None = None, num_out_tokens: int | None = None, **other: Any
) -> tuple[Tensor | None, ...]:
    """(rows [R, H], their probabilities, for each row its token, null, what was said of the experts' counts).

    tokens: [T, H]; routing_map: [T, E] bool, R of them true. Rows are in the order of experts, then tokens.
    """
    # Without tokens' own values: their gradient is ours.
    empty = tokens.new_empty(len(tokens), 0)
    found = moe_utils.permute(empty, routing_map, probs=probs, num_out_tokens=num_out_tokens, **other)
    order = found[2]
    rows: Tensor = _Spread.apply(tokens, order, routing_map)  # type: ignore[no-untyped-call]
    return rows, *found[1:]


def unpermute(rows: Tensor, order: Tensor, restore_shape: torch.Size, *, routing_map: Tensor, **other: Any) -> Tensor:
    """[T, H]: the sum of each token's rows. order: [R] the token of each row, as `permute` gave it."""
    assert tuple(restore_shape) == (len(routing_map), rows.shape[1]), restore_shape
    assert not other.get("drop_and_pad") and other.get("probs") is None, "no token is dropped, and rows are weighted"
    summed: Tensor = _Sum.apply(rows, order, routing_map)  # type: ignore[no-untyped-call]
    return summed


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Tensor, routing_map: Tensor) -> Tensor:
        ctx.save_for_backward(order, routing_map)
        return tokens.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _sums(grad, *ctx.saved_tensors), None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, routing_map: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return _sums(rows, order, routing_map)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        return grad.index_select(0, order), None, None


def _sums(rows: Tensor, order: Tensor, routing_map: Tensor) -> Tensor:
    """[T, H]: of each token, in the order of its experts."""
    if not len(rows):
        return rows.new_zeros(len(routing_map), rows.shape[1])
    counts = routing_map.sum(1)
    begins = counts.cumsum(0) - counts
    return nn.functional.embedding_bag(order.argsort(stable=True), rows.contiguous(), begins, mode="sum")
