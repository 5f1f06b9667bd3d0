"""Causal attention over packed sequences, of which a context-parallel rank holds some chunks of queries.

Each chunk attends to itself causally and to everything before it in its sequence without a mask, and the two results
are merged by their log-sum-exps. A causal mask whose corner is at the bottom right would do it in one call, but no
kernel that takes key heads of 192 and value heads of 128 at full speed has one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from r1hpc.model.attention_kernels import AttentionKernel, MathKernel, kernel_for
from r1hpc.model.packed import Chunk, PackedSequences


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sequences: PackedSequences,
    scale: float,
    kernel: AttentionKernel | None = None,
) -> Tensor:
    """What each of this rank's tokens attends to: [T, H, V] in the dtype of the query.

    query: [T, H, D], this rank's tokens. key: [W, H, D] and value: [W, H, V], the tokens of the whole sequences in
    order; W = T * cp_size. No communication: gradients of key and value are this rank's part, to be summed over ranks.
    kernel: null for the fastest that the device has.
    """
    kernel = kernel or kernel_for(query)
    out: Tensor = _PackedAttention.apply(query, key, value, sequences, scale, kernel)  # type: ignore[no-untyped-call]
    return out


class _PackedAttention(torch.autograd.Function):
    """Chunk by chunk; keeps q, k, v, the output and one log-sum-exp a query and head."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sequences: PackedSequences,
        scale: float,
        kernel: AttentionKernel,
    ) -> Tensor:
        outs, lses = [], []
        for chunk in sequences.chunks:
            by, q, own, before = _kernel(kernel, chunk), query[chunk.local], chunk.whole, chunk.before
            out, lse = by.forward(q, key[own], value[own], scale, causal=True)
            if chunk.has_before:
                out, lse = _merge(out, lse, *by.forward(q, key[before], value[before], scale, causal=False))
            outs.append(out)
            lses.append(lse)
        out = torch.cat(outs)
        ctx.save_for_backward(query, key, value, out, *lses)
        ctx.sequences, ctx.scale, ctx.kernel = sequences, scale, kernel
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, *lses = ctx.saved_tensors
        # cuDNN in some PyTorch versions looks its plan up by the layouts of q, k and v alone: those of the output and
        # of its gradient must always be the same.
        grad = grad.contiguous()
        grad_q, grad_k, grad_v = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for chunk, lse in zip(ctx.sequences.chunks, lses, strict=True):
            by, mine = _kernel(ctx.kernel, chunk), chunk.local
            for keys, causal in ((chunk.whole, True), (chunk.before, False))[: 1 + chunk.has_before]:
                of_q, of_k, of_v = by.backward(
                    grad[mine], query[mine], key[keys], value[keys], out[mine], lse, ctx.scale, causal
                )
                grad_q[mine] += of_q
                grad_k[keys] += of_k
                grad_v[keys] += of_v
        return grad_q, grad_k, grad_v, None, None, None


def _kernel(kernel: AttentionKernel, chunk: Chunk) -> AttentionKernel:
    """The kernel itself, but for single tokens, which PyTorch does not give to cuDNN."""
    return kernel if chunk.local.stop - chunk.local.start > 1 else MathKernel()


def _merge(out: Tensor, lse: Tensor, other_out: Tensor, other_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention to the keys of both, from attention to either; the log-sum-exp keeps its kernel's shape and layout."""
    both = torch.logaddexp(lse, other_lse)
    merged = out * _share(lse, both, out) + other_out * _share(other_lse, both, out)
    return merged.to(out.dtype), both


def _share(lse: Tensor, both: Tensor, out: Tensor) -> Tensor:
    """[Q, H, 1] weight of a part in the whole, at least float32."""
    queries, heads, _ = out.shape
    return (lse - both).exp().reshape(heads, queries, 1).transpose(0, 1)
