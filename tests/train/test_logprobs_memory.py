"""How much memory log-probs take beside the inputs, in chunks of float32 logits; the naive way takes 16 a copy."""

from __future__ import annotations

import pytest
import torch

from benchmarks.logprobs import LiveBytes, Sizes, chunked, cpu_bytes, naive
from r1hpc.train.logprobs import Entropy

# 16 chunks of 2 MiB of float32 logits; the gradients of hidden states and weight are a twentieth of a chunk.
FLOAT32 = Sizes(tokens=4096, columns=2048, hidden=4, chunk=256, dtype=torch.float32, device="cpu")
BF16 = Sizes(tokens=4096, columns=2048, hidden=4, chunk=256, dtype=torch.bfloat16, device="cpu")


@pytest.mark.parametrize("entropy", list(Entropy))
def test_forward_and_backward_hold_little_more_than_one_chunk_of_logits(entropy: Entropy) -> None:
    """A chunk is 1 in float32, worked on in place with a quarter beside it, and 1/2 in bf16 with two float32 quarters.

    A CPU must then widen the whole bf16 chunk for the weight's gradient: 1/2 + 1. What there is of every row (targets,
    log-probs, gradients) adds a tenth or two.
    """
    float32, bf16 = (cpu_bytes(chunked(sizes.chunk, entropy), sizes) for sizes in (FLOAT32, BF16))
    assert 1.25 <= float32.forward_bytes / FLOAT32.chunk_bytes < 1.4
    assert float32.peak_bytes / FLOAT32.chunk_bytes < 1.5
    assert 1.0 <= bf16.forward_bytes / BF16.chunk_bytes < 1.1
    assert bf16.peak_bytes / BF16.chunk_bytes < 1.7


def test_half_the_chunk_is_half_the_memory() -> None:
    whole, half = (cpu_bytes(chunked(chunk), FLOAT32).peak_bytes for chunk in (256, 128))
    assert half == pytest.approx(whole / 2, rel=0.15)


def test_the_naive_way_holds_several_copies_of_all_logits() -> None:
    assert cpu_bytes(naive, FLOAT32).peak_bytes / FLOAT32.chunk_bytes > 3 * 16


def test_the_count_sees_what_is_alive_at_once_and_no_view_twice() -> None:
    with LiveBytes() as live:
        first = torch.zeros(1000)
        first.view(10, 100).add_(1)
        del first
        second = torch.zeros(1500)
        third = second + 1
    assert len(third) == 1500
    assert live.peak == 2 * 1500 * 4
