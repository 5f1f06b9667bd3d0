"""The grouped products on a GPU against one product an expert. Needs no more than torch and pytest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from r1hpc.model.grouped_linear import grouped_linear

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

WIDTHS = (512, 256)


def products(x: Tensor, weight: Tensor, counts: tuple[int, ...], of_out: Tensor, grouped: bool) -> list[Tensor]:
    """Output, and gradients of rows and weights."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    if grouped:
        ends = torch.tensor(counts, device="cuda").cumsum(0, dtype=torch.int32)
        out = grouped_linear(x, weight, ends)
    else:
        out = torch.cat([rows @ each.t() for rows, each in zip(torch.split(x, list(counts)), weight, strict=True)])
    out.backward(of_out)  # type: ignore[no-untyped-call]
    assert x.grad is not None and weight.grad is not None
    return [out.detach(), x.grad, weight.grad]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("counts", [(300, 5, 129, 64), (77, 0, 950, 0), (0, 0, 0, 1), (0, 0, 0, 0)], ids=str)
def test_grouped_products_are_those_of_each_expert(dtype: torch.dtype, counts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    rows, (columns, outputs) = sum(counts), WIDTHS
    # Memory that was used before: what a kernel leaves alone shows.
    torch.full((64, 1024, 1024), float("nan"), device="cuda")
    x, weight = torch.randn(rows, columns, device="cuda"), torch.randn(len(counts), outputs, columns, device="cuda")
    of_out = torch.randn(outputs, rows, device="cuda").t()
    found = products(x.to(dtype), weight.to(dtype), counts, of_out.to(dtype), grouped=True)
    doubled = [value.to(dtype).double() for value in (x, weight, of_out)]
    expected = products(doubled[0], doubled[1], counts, doubled[2], grouped=False)
    # Sums of 512 products: rounded once to bf16, or accumulated in float32 (in TF32 nowhere).
    tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-5
    for name, mine, exact in zip(("out", "x", "weight"), found, expected, strict=True):
        assert mine.shape == exact.shape, name
        if exact.numel():
            assert (mine.double() - exact).abs().max() <= tolerance * exact.abs().max(), name
    for expert, count in enumerate(counts):
        assert bool(found[2][expert].any()) == (count > 0)
