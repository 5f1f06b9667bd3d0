"""Attention on a GPU: each fast kernel against the exact one, whole and cut over emulated context ranks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from r1hpc.model.attention_kernels import AttentionKernel, CudnnKernel, FlashKernel, MathKernel, kernel_for
from r1hpc.model.context_attention import packed_attention
from r1hpc.model.packed import local_indices, pack_sequences

HAS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_HOPPER, reason="needs an NVIDIA GPU of compute capability 9.0 or more"),
]

HEADS, KEY_WIDTH, VALUE_WIDTH = 16, 192, 128  # of R1 at TP8
SCALE = KEY_WIDTH**-0.5
KERNELS: dict[str, AttentionKernel] = {
    "cudnn": CudnnKernel(),
    "cudnn, triangles": CudnnKernel(triangles_from=8),
    "flash": FlashKernel(),
}
PACKS = [
    ([512], 1),
    ([384, 129, 1, 2, 1000], 1),
    ([512, 128], 2),
    ([1024, 8, 136], 4),
    ([8, 16], 4),  # chunks of one token, and of two
    ([2 * 8 * 37], 8),
]


@pytest.mark.parametrize(("lengths", "cp_size"), PACKS)
@pytest.mark.parametrize("name", KERNELS)
def test_outputs_and_gradients_are_those_of_the_exact_kernel(name: str, lengths: list[int], cp_size: int) -> None:
    leaves, weight = made_up(sum(lengths), torch.bfloat16)
    exact = tuple(x.detach().double().requires_grad_() for x in leaves)
    want = on_all_ranks(exact, lengths, 1, MathKernel())
    got = on_all_ranks(leaves, lengths, cp_size, KERNELS[name])
    assert got.dtype == torch.bfloat16
    assert error(got, want) < 0.01
    grads = (torch.autograd.grad((out * weight).sum(), x) for out, x in ((got, leaves), (want, exact)))
    for mine, theirs in zip(*grads, strict=True):
        assert error(mine, theirs) < 0.02


@pytest.mark.parametrize(("lengths", "cp_size"), PACKS)
def test_float32_is_exact_on_a_gpu_too(lengths: list[int], cp_size: int) -> None:
    leaves, weight = made_up(sum(lengths), torch.float32)
    assert isinstance(kernel_for(leaves[0]), MathKernel)
    exact = tuple(x.detach().double().requires_grad_() for x in leaves)
    want, got = on_all_ranks(exact, lengths, 1, MathKernel()), on_all_ranks(leaves, lengths, cp_size, None)
    assert error(got, want) < 1e-5
    grads = (torch.autograd.grad((out * weight).sum(), x) for out, x in ((got, leaves), (want, exact)))
    for mine, theirs in zip(*grads, strict=True):
        assert error(mine, theirs) < 1e-5


def test_bfloat16_takes_cudnn() -> None:
    assert isinstance(kernel_for(made_up(2, torch.bfloat16)[0][0]), CudnnKernel)


def test_log_sum_exps_are_natural_and_of_scaled_scores() -> None:
    q, k, v = (x.detach().transpose(0, 1).unsqueeze(0) for x in made_up(300, torch.bfloat16)[0])
    for causal in (True, False):
        _, want = MathKernel().forward(q, k, v, SCALE, causal)
        for kernel in KERNELS.values():
            _, lse = kernel.forward(q, k, v, SCALE, causal)
            assert error(lse.reshape(HEADS, 300), want) < 1e-3


def test_layouts_of_queries_keys_and_values_do_not_matter() -> None:
    (q, k, v), weight = made_up(256, torch.bfloat16)
    strided = torch.randn(256, HEADS, 2 * VALUE_WIDTH, device="cuda", dtype=torch.bfloat16)
    strided[..., VALUE_WIDTH:] = v.detach()
    other_v = strided[..., VALUE_WIDTH:].requires_grad_()
    for values in (v, other_v):
        out = on_all_ranks((q, k, values), [256], 2, CudnnKernel())
        grads = torch.autograd.grad((out * weight).sum(), (q, k, values))
        if values is v:
            want, wanted = out, grads
    assert error(out, want) < 1e-6
    for mine, theirs in zip(grads, wanted, strict=True):
        assert error(mine, theirs) < 0.02


def made_up(tokens: int, dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """q, k and v, leaves, and weights for the output."""
    random = torch.Generator("cuda").manual_seed(5)
    widths = (KEY_WIDTH, KEY_WIDTH, VALUE_WIDTH, VALUE_WIDTH)
    q, k, v, weight = (torch.randn(tokens, HEADS, w, generator=random, device="cuda").to(dtype) for w in widths)
    return (q.requires_grad_(), k.requires_grad_(), v.requires_grad_()), weight


def on_all_ranks(
    leaves: tuple[Tensor, ...], lengths: list[int], cp_size: int, kernel: AttentionKernel | None
) -> Tensor:
    """The outputs of all context ranks, put in the order of the whole sequences."""
    query, key, value = leaves
    places = [local_indices(lengths, rank, cp_size).cuda() for rank in range(cp_size)]
    outs = []
    for rank, mine in enumerate(places):
        sequences = pack_sequences(lengths, rank, cp_size, "cuda")
        outs.append(packed_attention(query[mine], key, value, sequences, SCALE, kernel))
    return torch.cat(outs)[torch.cat(places).argsort()]


def error(got: Tensor, want: Tensor) -> float:
    """Largest difference by largest value."""
    return float((got.double() - want.double()).abs().max() / want.double().abs().max())
