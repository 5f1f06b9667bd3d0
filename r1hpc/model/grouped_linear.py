"""Many linears in one kernel: each group of rows times the weight of its own expert."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ALIGNMENT_BYTES = 16
"""Of the rows of what torch._grouped_mm multiplies: its kernels load 16 bytes at a time (TMA)."""


class GroupedLinear(torch.autograd.Function):
    """y[rows of expert e] = x[rows of expert e] @ weight[e]^T.

    Its own backward rather than autograd's of torch._grouped_mm: that one fails for gradients that are expanded or
    transposed, and for no rows at all it need not give the zeros that a gradient buffer waits for.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        """x: [T, K], rows in the order of their experts. weight: [E, N, K]. ends: [E] int32 of those rows."""
        x = _rows(x)
        ctx.save_for_backward(x, weight, ends)
        if not len(x):
            return x.new_empty(0, weight.shape[1])
        return torch._grouped_mm(x, weight.transpose(1, 2), offs=ends)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, ends = ctx.saved_tensors
        of_y = _rows(gradients[0])
        if not len(x):
            return torch.zeros_like(x), torch.zeros_like(weight), None
        of_x = torch._grouped_mm(of_y, weight, offs=ends) if ctx.needs_input_grad[0] else None
        of_weight = torch._grouped_mm(of_y.transpose(0, 1), x, offs=ends) if ctx.needs_input_grad[1] else None
        return of_x, of_weight, None


def _rows(x: Tensor) -> Tensor:
    """Rows one after another. A single row is contiguous to torch whatever its stride; the kernels check that too."""
    return x.reshape(-1).view(x.shape)


def grouped_linear(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """[T, N]; the arguments as in GroupedLinear.forward."""
    product: Tensor = GroupedLinear.apply(x, weight, ends)  # type: ignore[no-untyped-call]
    return product
