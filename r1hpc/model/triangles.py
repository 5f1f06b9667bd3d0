"""The backward pass of attention without a mask out of causal ones.

For key heads of 192 and value heads of 128 cuDNN makes 450 TFLOP/s under a causal mask, and 300 without one, which is
the time that value heads of 192 would take (H200, 8,192 tokens; docs/performance.md). A square of queries and keys is
two triangles: what a causal mask leaves, and, with both in reversed order and without the diagonal, what it takes
away. Each pair is in one of them, and with the log-sum-exp over all keys every part's gradient is exact.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

TOKENS = 2
"""The dimension of tokens in [1, H, tokens, width]."""


class CausalBackward(Protocol):
    """A kernel's backward pass of a causal square block; shapes as in `attention_kernels`."""

    def __call__(
        self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float, causal: bool
    ) -> tuple[Tensor, Tensor, Tensor]: ...


def backward_by_triangles(
    backward: CausalBackward, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v where every query sees every key.

    q: [1, H, Q, D] and k: [1, H, n * Q, D], Q at least 2. Gradients of q are added up in float32 or wider.
    """
    size = q.shape[TOKENS]
    above = [_reversed(x.narrow(TOKENS, 0, size - 1)) for x in (grad, q, out)]
    above_lse = _reversed_rows(lse, size)
    grad_q = torch.zeros_like(q, dtype=torch.promote_types(q.dtype, torch.float32))
    grad_k, grad_v = torch.empty_like(k), torch.empty_like(v)

    def square(keys: Tensor, values: Tensor, of_keys: Tensor, of_values: Tensor) -> None:
        """Of as many keys as queries; what it takes is free again before the next one."""
        below = backward(grad, q, keys, values, out, lse, scale, causal=True)
        grad_q.add_(below[0])
        of_keys.copy_(below[1])
        of_values.copy_(below[2])
        del below
        keys, values = (_reversed(x.narrow(TOKENS, 1, size - 1)) for x in (keys, values))
        rest = backward(above[0], above[1], keys, values, above[2], above_lse, scale, causal=True)
        grad_q.narrow(TOKENS, 0, size - 1).add_(_reversed(rest[0]))
        of_keys.narrow(TOKENS, 1, size - 1).add_(_reversed(rest[1]))
        of_values.narrow(TOKENS, 1, size - 1).add_(_reversed(rest[2]))

    for begin in range(0, k.shape[TOKENS], size):
        square(*(x.narrow(TOKENS, begin, size) for x in (k, v, grad_k, grad_v)))
    return grad_q.to(q.dtype), grad_k, grad_v


def _reversed(x: Tensor) -> Tensor:
    """A copy with the last token first, in the same layout."""
    return x.flip(TOKENS)


def _reversed_rows(lse: Tensor, size: int) -> Tensor:
    """A copy of the log-sum-exps of all queries but the last, the last of them first, in the kernel's own shape."""
    place = lse.dim() - 1 if lse.shape[-1] == size else lse.dim() - 2
    return lse.narrow(place, 0, size - 1).flip(place)
