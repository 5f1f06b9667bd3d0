"""Packed attention against a dense softmax, with the context ranks emulated one after another in this process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from r1hpc.model.attention_kernels import AttentionKernel, CudnnKernel, FlashKernel, MathKernel
from r1hpc.model.context_attention import packed_attention
from r1hpc.model.packed import local_indices, pack_sequences
from r1hpc.model.triangles import _reversed_rows, backward_by_triangles

HEADS, KEY_WIDTH, VALUE_WIDTH, SCALE = 2, 6, 4, 0.37
PACKS = [([7, 1, 12], 1), ([8, 4, 20], 2), ([8, 40], 4), ([4], 2), ([8, 8], 4)]
"""The last two have chunks of one token."""


@pytest.mark.parametrize(("lengths", "cp_size"), PACKS)
def test_outputs_and_gradients_are_those_of_a_dense_softmax(lengths: list[int], cp_size: int) -> None:
    leaves, weight = made_up(sum(lengths))
    want = dense(*leaves, lengths)
    wanted = torch.autograd.grad((want * weight).sum(), leaves)
    got = on_all_ranks(leaves, lengths, cp_size)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    for mine, theirs in zip(torch.autograd.grad((got * weight).sum(), leaves), wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("lengths", "cp_size"), [([5, 3], 1), ([4, 8], 2), ([8], 4)])
def test_gradients_are_those_of_finite_differences(lengths: list[int], cp_size: int) -> None:
    leaves, _ = made_up(sum(lengths))
    assert torch.autograd.gradcheck(lambda *leaves: on_all_ranks(leaves, lengths, cp_size), leaves, fast_mode=True)


@pytest.mark.parametrize("max_scores", [1, 30, 100, 1 << 22])
@pytest.mark.parametrize("causal", [True, False])
def test_row_blocks_change_nothing(max_scores: int, causal: bool) -> None:
    q, k, v = (heads_first(x.detach()) for x in made_up(13)[0])
    k, v = (k, v) if causal else (k[:, :, :9], v[:, :, :9])
    whole, blocked = MathKernel(1 << 30), MathKernel(max_scores)
    out, lse = whole.forward(q, k, v, SCALE, causal)
    blocked_out, blocked_lse = blocked.forward(q, k, v, SCALE, causal)
    torch.testing.assert_close(blocked_out, out)
    torch.testing.assert_close(blocked_lse, lse)
    grads = (kernel.backward(out.cos(), q, k, v, out, lse, SCALE, causal) for kernel in (whole, blocked))
    for want, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, want)


def test_log_sum_exp_is_of_the_scaled_scores_that_are_seen() -> None:
    (q, k, v), _ = made_up(5)
    _, lse = MathKernel().forward(heads_first(q), heads_first(k), heads_first(v), SCALE, causal=True)
    scores = torch.einsum("qhd,khd->hqk", q, k) * SCALE
    for row in range(5):
        torch.testing.assert_close(lse[:, row], scores[:, row, : row + 1].logsumexp(-1))


@pytest.mark.parametrize("cp_size", [1, 2])
def test_sequences_and_later_tokens_are_not_seen(cp_size: int) -> None:
    lengths = [8, 12, 4]
    (q, k, v), _ = made_up(24)
    out = on_all_ranks((q, k, v), lengths, cp_size)
    token = 8 + 5  # of the second sequence
    _, of_k, of_v = torch.autograd.grad(out[token].sum(), (q, k, v), retain_graph=True)
    for gradient in (of_k, of_v):
        seen = gradient.abs().sum((1, 2)).nonzero().flatten().tolist()
        assert seen == list(range(8, token + 1))


def test_large_scores_do_not_overflow_when_merged() -> None:
    (q, k, v), weight = made_up(8)
    leaves = (q.detach().mul(300).requires_grad_(), k, v)
    want, got = dense(*leaves, [8]), on_all_ranks(leaves, [8], 2)
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad((out * weight).sum(), leaves) for out in (want, got)]
    for theirs, mine in zip(*grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("cp_size", [1, 2])
def test_bfloat16_is_computed_in_float32(cp_size: int) -> None:
    q, k, v = (x.detach().bfloat16() for x in made_up(8)[0])
    got, want = on_all_ranks((q, k, v), [8], cp_size), dense(q.double(), k.double(), v.double(), [8])
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), want, rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize(("queries", "keys"), [(2, 2), (5, 5), (7, 21), (6, 12)])
def test_two_triangles_are_a_square(queries: int, keys: int) -> None:
    kernel = MathKernel()
    (q, _, _), weight = made_up(queries)
    (_, k, v), _ = made_up(keys)
    q, k, v, grad = (heads_first(x.detach()) for x in (q, k, v, weight))
    out, lse = kernel.forward(q, k, v, SCALE, causal=False)
    # As of queries that see other keys as well.
    lse = lse + 0.3
    want = kernel.backward(grad, q, k, v, out, lse, SCALE, causal=False)
    got = backward_by_triangles(kernel.backward, grad, q, k, v, out, lse, SCALE)
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 7), (1, 2, 7), (1, 2, 7, 1), (1, 7, 7)])
def test_rows_are_reversed_in_whatever_shape_a_kernel_gives_log_sum_exps(shape: tuple[int, ...]) -> None:
    lse = torch.randn(shape)
    found = _reversed_rows(lse, 7)
    assert found.is_contiguous()
    heads = lse.numel() // 7
    assert torch.equal(found.reshape(heads, 6), lse.reshape(heads, 7).flip(1)[:, 1:])


@pytest.mark.parametrize("kernel", [CudnnKernel(), CudnnKernel(24), FlashKernel()], ids=["cudnn", "triangles", "flash"])
@pytest.mark.parametrize(("queries", "keys", "causal"), [(24, 24, True), (24, 40, False), (24, 48, False)])
def test_the_gpu_kernels_operators_take_their_arguments_and_give_the_exact_kernels_shapes(
    kernel: AttentionKernel, queries: int, keys: int, causal: bool
) -> None:
    # Without memory: names, order and shapes of this PyTorch's operators. Their values are tested on a GPU.
    q, k, v = (
        heads_first(torch.empty(tokens, 16, width, dtype=torch.bfloat16, device="meta"))
        for tokens, width in ((queries, 192), (keys, 192), (keys, 128))
    )
    out, lse = kernel.forward(q, k, v, SCALE, causal)
    assert out.shape == (1, 16, queries, 128)
    assert lse.reshape(16, queries).dtype == torch.float32
    grads = kernel.backward(torch.empty_like(out), q, k, v, out, lse, SCALE, causal)
    assert [grad.shape for grad in grads] == [q.shape, k.shape, v.shape]


def heads_first(x: Tensor) -> Tensor:
    """[tokens, H, width] as kernels take it: [1, H, tokens, width]."""
    return x.transpose(0, 1).unsqueeze(0)


def made_up(tokens: int) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """q, k and v, float64 leaves, and weights for the output."""
    random = torch.Generator().manual_seed(5)
    widths = (KEY_WIDTH, KEY_WIDTH, VALUE_WIDTH, VALUE_WIDTH)
    q, k, v, weight = (torch.randn(tokens, HEADS, w, generator=random, dtype=torch.float64) for w in widths)
    return (q.requires_grad_(), k.requires_grad_(), v.requires_grad_()), weight


def on_all_ranks(leaves: tuple[Tensor, ...], lengths: list[int], cp_size: int) -> Tensor:
    """The outputs of all context ranks, put in the order of the whole sequences."""
    query, key, value = leaves
    outs, places = [], [local_indices(lengths, rank, cp_size) for rank in range(cp_size)]
    for rank, mine in enumerate(places):
        sequences = pack_sequences(lengths, rank, cp_size)
        outs.append(packed_attention(query[mine], key, value, sequences, SCALE))
    return torch.cat(outs)[torch.cat(places).argsort()]


def dense(query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
    """One softmax over all pairs, with a mask that is block-diagonal and causal."""
    tokens = torch.arange(sum(lengths))
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    seen = (sequence[:, None] == sequence) & (tokens[:, None] >= tokens)
    scores = (torch.einsum("qhd,khd->hqk", query, key) * SCALE).masked_fill(~seen, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), value)
