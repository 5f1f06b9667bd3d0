"""Tokens that are spread over a group of ranks, brought together on all of them."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def gather_tokens(shard: Tensor, group: dist.ProcessGroup, order: Tensor | None) -> Tensor:
    """[W, width]: the tokens of all ranks of the group, of each as many as [T, width] here; W = T * ranks.

    order: [W] int64 permutation, applied to the tokens in the order of the ranks; null leaves that order.
    Collective. Backward sums the gradients of all ranks, in float32 or wider whatever the dtype of the tokens.
    """
    if group.size() == 1 and order is None:
        return shard
    gathered: Tensor = _GatherTokens.apply(shard, group, order)  # type: ignore[no-untyped-call]
    return gathered


class _GatherTokens(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, shard: Tensor, group: dist.ProcessGroup, order: Tensor | None) -> Tensor:
        ctx.group, ctx.order, ctx.dtype = group, order, shard.dtype
        gathered = shard.new_empty((group.size() * len(shard), *shard.shape[1:]))
        dist.all_gather_into_tensor(gathered, shard.contiguous(), group=group)
        return gathered if order is None else gathered.index_select(0, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        # A ring over 32 ranks would round a bfloat16 sum 31 times.
        grad = grad.to(torch.promote_types(grad.dtype, torch.float32)).contiguous()
        if ctx.order is not None:
            # A permutation has no duplicates: copying is the adjoint, without the atomics of an added index.
            grad = torch.empty_like(grad).index_copy_(0, ctx.order, grad)
        shard = grad.new_empty((len(grad) // ctx.group.size(), *grad.shape[1:]))
        dist.reduce_scatter_tensor(shard, grad, group=ctx.group)
        return shard.to(ctx.dtype), None, None
