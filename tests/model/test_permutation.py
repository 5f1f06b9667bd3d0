"""Tokens to their experts and back, against upstream's functions in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from megatron.core.transformer.moe import moe_utils
from torch import Tensor

from r1hpc.model.permutation import permute, unpermute

TOKENS, EXPERTS, HIDDEN = 37, 8, 16


def routing(counts: Tensor) -> Tensor:
    """[T, E] with so many experts for each token."""
    order = torch.rand(len(counts), EXPERTS).argsort(1).argsort(1)
    return order < counts[:, None]


def there_and_back(functions: Any, tokens: Tensor, routing_map: Tensor, probs: Tensor) -> tuple[Tensor, ...]:
    """Rows, their probabilities, what comes back of the rows times those, and gradients of tokens and probabilities."""
    tokens, probs = tokens.clone().requires_grad_(), probs.clone().requires_grad_()
    rows, row_probs, order, *_ = functions.permute(
        tokens, routing_map, probs=probs, num_out_tokens=int(routing_map.sum()), fused=False, drop_and_pad=False
    )
    back = functions.unpermute(
        rows * row_probs[:, None].to(rows.dtype),
        order,
        restore_shape=tokens.shape,
        routing_map=routing_map,
        fused=False,
        drop_and_pad=False,
    )
    weights = torch.arange(back.numel(), dtype=back.dtype).view(back.shape).cos()
    return (
        rows.detach(),
        row_probs.detach(),
        back.detach(),
        *torch.autograd.grad((back * weights).sum(), (tokens, probs)),
    )


class Ours:
    permute = staticmethod(permute)
    unpermute = staticmethod(unpermute)


@pytest.mark.parametrize("counts", [torch.full((TOKENS,), 3), torch.arange(TOKENS) % 4], ids=["equal", "any"])
def test_rows_sums_and_gradients_are_upstreams(counts: Tensor) -> None:
    torch.manual_seed(0)
    tokens, probs = torch.randn(TOKENS, HIDDEN, dtype=torch.float64), torch.rand(TOKENS, EXPERTS, dtype=torch.float64)
    routing_map = routing(counts)
    found = there_and_back(Ours, tokens, routing_map, probs)
    expected = there_and_back(moe_utils, tokens, routing_map, probs)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_sums_in_bfloat16_are_rounded_once() -> None:
    torch.manual_seed(1)
    tokens = torch.randn(TOKENS, HIDDEN).bfloat16()
    routing_map, probs = routing(torch.full((TOKENS,), EXPERTS)), torch.ones(TOKENS, EXPERTS)
    gradient = there_and_back(Ours, tokens, routing_map, probs)[3]
    weights = torch.arange(tokens.numel(), dtype=torch.bfloat16).view(tokens.shape).cos()
    # Eight equal addends.
    assert torch.equal(gradient, (EXPERTS * weights.float()).bfloat16())


def test_no_rows_are_zeros() -> None:
    rows = torch.empty(0, HIDDEN, requires_grad=True)
    back = unpermute(
        rows, torch.empty(0, dtype=torch.int64), torch.Size((5, HIDDEN)), routing_map=torch.zeros(5, 8) > 0
    )
    assert torch.equal(back, torch.zeros(5, HIDDEN))
    back.sum().backward()  # type: ignore[no-untyped-call]
    assert rows.grad is not None and rows.grad.shape == (0, HIDDEN)
