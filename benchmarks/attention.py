"""Attention over packed sequences on one GPU, and what a context-parallel rank loses by cutting them.

    python -m benchmarks.attention

TFLOP/s of one layer's attention with the heads of R1 at TP8 (16, key width 192, value width 128), bf16, causal, forward
and forward with backward, by kernel and context ranks; the share is of the same kernel without cutting, for both
passes. Of several context ranks the slowest counts; what travels between them is not a part of it. Beside it a plain
bf16 matrix product in the same process. About a minute on an H200; without a GPU the exact kernel and few tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.step import best
from r1hpc.model.attention_kernels import AttentionKernel, CudnnKernel, FlashKernel, MathKernel
from r1hpc.model.context_attention import packed_attention
from r1hpc.model.packed import pack_sequences

HEADS, KEY_WIDTH, VALUE_WIDTH = 16, 192, 128
SCALE = KEY_WIDTH**-0.5
LENGTHS = {
    "1 x 32768": [32768],
    "8192 and 16384": [8192, 16384],
    "8 x 4096": [4096] * 8,
    "11 of 1536 to 9728": [8704, 1536, 4608, 5632, 7168, 7168, 5632, 3072, 5632, 9728, 4096],
}
CONTEXT_RANKS = (1, 2, 4)
PRODUCT = 8192
REPETITIONS = 6


def main() -> int:
    """Measure and report."""
    gpu = torch.cuda.is_available()
    kernels: dict[str, AttentionKernel] = (
        {"cuDNN": CudnnKernel(), "cuDNN, no triangles": CudnnKernel(1 << 30), "flash": FlashKernel()}
        if gpu
        else {"exact": MathKernel()}
    )
    figures = {"product": product_flops() / 1e12}
    print(f"bf16 product of {PRODUCT if gpu else PRODUCT // 16}: {figures['product']:.1f} TFLOP/s\n")
    print("| lengths | kernel | context ranks | forward TFLOP/s | forward and backward | share of one rank |")
    print("|" + "---|" * 6)
    for case, lengths in LENGTHS.items():
        for name, kernel in kernels.items():
            whole = 0.0
            for ranks in CONTEXT_RANKS:
                cut = lengths if gpu else [length // 64 for length in lengths]
                forward, both = tflops(cut, ranks, kernel)
                whole = whole or both
                print(f"| {case} | {name} | {ranks} | {forward:.1f} | {both:.1f} | {both / whole:.2f} |", flush=True)
                figures |= {f"{case} {name} CP{ranks}": both, f"{case} {name} CP{ranks} share": both / whole}
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    return 0


def tflops(lengths: Sequence[int], ranks: int, kernel: AttentionKernel) -> tuple[float, float]:
    """Forward, and forward with backward, of the slowest of the context ranks."""
    of_ranks = [seconds(lengths, rank, ranks, kernel) for rank in range(ranks)]
    slowest = [max(times) for times in zip(*of_ranks, strict=True)]
    flops = causal_flops(lengths) / ranks / 1e12
    # A backward pass has five products where a forward pass has two.
    return flops / slowest[0], 3.5 * flops / slowest[1]


def seconds(lengths: Sequence[int], rank: int, ranks: int, kernel: AttentionKernel) -> tuple[float, float]:
    """Of a forward pass, and of forward and backward, of one context rank."""
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    tokens = sum(lengths)
    sequences = pack_sequences(lengths, rank, ranks, device)

    def made_up(rows: int, width: int) -> Tensor:
        return torch.randn(rows, HEADS, width, device=device, dtype=dtype, requires_grad=True)

    query, key, value = made_up(tokens // ranks, KEY_WIDTH), made_up(tokens, KEY_WIDTH), made_up(tokens, VALUE_WIDTH)
    grad = made_up(tokens // ranks, VALUE_WIDTH).detach()

    def forward() -> Tensor:
        return packed_attention(query, key, value, sequences, SCALE, kernel)

    def both() -> object:
        return torch.autograd.grad(forward(), (query, key, value), grad)

    with torch.no_grad():
        alone = best(forward, REPETITIONS)
    return alone, best(both, REPETITIONS)


def causal_flops(lengths: Sequence[int]) -> float:
    """Of a forward pass over whole sequences: two per multiplication, half of the pairs."""
    return sum(2 * HEADS * (KEY_WIDTH + VALUE_WIDTH) * length**2 / 2 for length in lengths)


def product_flops() -> float:
    """A second of a plain matrix product."""
    gpu = torch.cuda.is_available()
    size, device = (PRODUCT, "cuda") if gpu else (PRODUCT // 16, "cpu")
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / best(lambda: one @ other, REPETITIONS)


if __name__ == "__main__":
    raise SystemExit(main())
