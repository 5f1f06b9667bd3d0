"""Attention of some queries to some keys, forward and backward, by the fastest kernel that a device has.

Each kernel is used twice over: its log-sum-exp lets results over different keys be merged, and its backward pass takes
the merged output and log-sum-exp, which make every block's gradient exact (FlashAttention, arXiv:2205.14135).
Shapes are those of PyTorch's own attention for a batch of one: q [1, H, Q, D], k [1, H, K, D], v [1, H, K, V], out
[1, H, Q, V]; views of tensors that have tokens first, so that nothing is copied.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from r1hpc.model.triangles import backward_by_triangles


class AttentionKernel(Protocol):
    """One block of attention. Causal blocks are square: query i sees keys 0 to i."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
        """(out in q's dtype, log-sum-exp of each query's scaled scores).

        The log-sum-exp is contiguous, float32 or wider, in the kernel's own shape: [H, Q] but for dimensions of 1.
        """
        ...

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, causal: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The block's gradients of q, k and v; `out` and `lse`, shaped as from forward, are over all its keys."""
        ...


def kernel_for(query: Tensor) -> AttentionKernel:
    """The kernel for tensors like this one, by device and dtype."""
    if not query.is_cuda or query.dtype not in (torch.bfloat16, torch.float16):
        return MathKernel()
    # cuDNN's backward pass takes heads wider than 128 only since compute capability 9.0.
    if torch.backends.cudnn.enabled and torch.cuda.get_device_capability(query.device) >= (9, 0):
        return CudnnKernel()
    return FlashKernel()


class MathKernel:
    """Plain matrix products in float32 (float64 for float64), some query rows at a time. Any device; exact."""

    def __init__(self, max_scores: int = 1 << 22) -> None:
        self.max_scores = max_scores
        """Scores held at once, of all heads together; 16 MiB in float32 by default."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
        dtype = q.dtype
        q, k, v = _wide(q, k, v)
        outs, lses = [], []
        for rows, keys in self._blocks(q, k, causal):
            scores = _scores(q[:, rows], k[:, keys], rows, scale, causal)
            lses.append(scores.logsumexp(-1))
            outs.append((scores - lses[-1].unsqueeze(-1)).exp() @ v[:, keys])
        return torch.cat(outs, 1).unsqueeze(0).to(dtype), torch.cat(lses, 1)

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, causal: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype = q.dtype
        grad, q, k, v, out = _wide(grad, q, k, v, out)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for rows, keys in self._blocks(q, k, causal):
            scores = _scores(q[:, rows], k[:, keys], rows, scale, causal)
            weights = (scores - lse[:, rows].unsqueeze(-1)).exp()
            mean = (grad[:, rows] * out[:, rows]).sum(-1, keepdim=True)
            grad_scores = weights * (grad[:, rows] @ v[:, keys].mT - mean) * scale
            grad_q[:, rows] = grad_scores @ k[:, keys]
            grad_k[:, keys] += grad_scores.mT @ q[:, rows]
            grad_v[:, keys] += weights.mT @ grad[:, rows]
        grad_q, grad_k, grad_v = (x.unsqueeze(0).to(dtype) for x in (grad_q, grad_k, grad_v))
        return grad_q, grad_k, grad_v

    def _blocks(self, q: Tensor, k: Tensor, causal: bool) -> list[tuple[slice, slice]]:
        """Query rows, and the keys that any of them sees."""
        heads, queries, keys = len(q), q.shape[1], k.shape[1]
        step = max(1, self.max_scores // (heads * keys))
        ends = [min(begin + step, queries) for begin in range(0, queries, step)]
        return [
            (slice(begin, end), slice(end if causal else keys))
            for begin, end in zip(range(0, queries, step), ends, strict=True)
        ]


class CudnnKernel:
    """cuDNN's, through PyTorch's own operators: bfloat16 and float16, value heads narrower than key heads."""

    def __init__(self, triangles_from: int = 8192) -> None:
        self.triangles_from = triangles_from
        """Queries of a block without a mask from which on two causal ones should take less time for its gradients: an
        estimate from measured blocks, by which the copies take what the kernels save at 4,096."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
        attend = torch.ops.aten._scaled_dot_product_cudnn_attention
        out, lse, *_ = attend(q, k, v, None, True, 0.0, causal, False, scale=scale)
        return out, lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, causal: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        attend = torch.ops.aten._scaled_dot_product_cudnn_attention_backward
        queries, keys, unused = q.shape[2], k.shape[2], _no_dropout_state(q)
        if not causal and queries >= self.triangles_from and keys % queries == 0:
            return backward_by_triangles(self.backward, grad, q, k, v, out, lse, scale)
        grads: tuple[Tensor, Tensor, Tensor] = attend(
            grad, q, k, v, out, lse, unused, unused, None, None, None, queries, keys, 0.0, causal, scale=scale
        )
        return grads


class FlashKernel:
    """FlashAttention-2's, through PyTorch's own operators: value heads are padded to the width of key heads."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
        attend = torch.ops.aten._scaled_dot_product_flash_attention
        out, lse, *_ = attend(q, k, _widened(v, q), 0.0, causal, False, scale=scale)
        return out[..., : v.shape[-1]], lse

    def backward(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, causal: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        attend, width = torch.ops.aten._scaled_dot_product_flash_attention_backward, v.shape[-1]
        queries, keys, unused = q.shape[2], k.shape[2], _no_dropout_state(q)
        grad, v, out = (_widened(x, q) for x in (grad, v, out))
        grad_q, grad_k, grad_v = attend(
            grad, q, k, v, out, lse, None, None, queries, keys, 0.0, causal, unused, unused, scale=scale
        )
        return grad_q, grad_k, grad_v[..., :width]


def _wide(*tensors: Tensor) -> list[Tensor]:
    """[1, H, tokens, width] -> [H, tokens, width], float32 or wider."""
    return [x.squeeze(0).to(torch.promote_types(x.dtype, torch.float32)) for x in tensors]


def _scores(q: Tensor, k: Tensor, rows: slice, scale: float, causal: bool) -> Tensor:
    """[H, R, K] scaled products of these query rows with keys 0 to K; -inf where the key comes after the query."""
    scores = q @ k.mT * scale
    if causal:
        later = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(rows.start + 1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores


def _widened(x: Tensor, like: Tensor) -> Tensor:
    """Padded with zero features to the width of `like`, tokens first in memory."""
    return nn.functional.pad(x.transpose(1, 2), (0, like.shape[-1] - x.shape[-1])).transpose(1, 2)


def _no_dropout_state(x: Tensor) -> Tensor:
    """In the place of the random state of the dropout that there is not; never read."""
    return torch.empty((), dtype=torch.int64, device=x.device)
