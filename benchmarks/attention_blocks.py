"""Single blocks of attention on one GPU: what packed_attention and backward_by_triangles are made of.

    python -m benchmarks.attention_blocks

TFLOP/s of cuDNN's forward and backward pass by queries and keys, under a causal mask and without one, with the heads of
R1 at TP8 (16; widths of keys and values as given), bf16; without a mask also the backward pass out of causal ones.
Not run on a GPU in this form yet; on a CPU it takes the exact kernel and small blocks.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.step import best
from r1hpc.model.attention_kernels import AttentionKernel, CudnnKernel, MathKernel
from r1hpc.model.triangles import backward_by_triangles

HEADS = 16
SIZES = (1024, 2048, 4096, 8192, 16384)
UNMASKED = ((1024, 1024), (1024, 7168), (4096, 4096), (4096, 12288), (8192, 8192), (8192, 24576))
WIDTHS = ((192, 128), (192, 192), (128, 128))
"""Of keys and values; R1's first, the others at 4,096 x 4,096 alone."""
REPETITIONS = 6


def main() -> int:
    """Measure and report."""
    print("| queries x keys | widths | mask | forward TFLOP/s | backward | by triangles |\n|" + "---|" * 6)
    for size in SIZES:
        report(size, size, WIDTHS[0], causal=True)
    for queries, keys in UNMASKED:
        report(queries, keys, WIDTHS[0], causal=False)
    for widths in WIDTHS[1:]:
        for causal in (True, False):
            report(4096, 4096, widths, causal)
    return 0


def report(queries: int, keys: int, widths: tuple[int, int], causal: bool) -> None:
    """A line of the table."""
    gpu = torch.cuda.is_available()
    scale = 1 if gpu else 64
    found = measure(queries // scale, keys // scale, widths, causal)
    shown = " | ".join("" if flops is None else f"{flops / 1e12:.3g}" for flops in found)
    mask = "causal" if causal else "none"
    print(f"| {queries // scale} x {keys // scale} | {widths[0]}, {widths[1]} | {mask} | {shown} |", flush=True)


def measure(queries: int, keys: int, widths: tuple[int, int], causal: bool) -> tuple[float, float, float | None]:
    """Useful FLOP/s forward, backward, and backward out of causal blocks where there is no mask."""
    kernel: AttentionKernel = CudnnKernel(triangles_from=1 << 30) if torch.cuda.is_available() else MathKernel()
    q, k, v = made_up(queries, widths[0]), made_up(keys, widths[0]), made_up(keys, widths[1])
    scale = widths[0] ** -0.5
    out, lse = kernel.forward(q, k, v, scale, causal)
    grad = made_up(queries, widths[1])
    # Two per multiplication; a backward pass has five products where a forward pass has two.
    flops = 2 * HEADS * sum(widths) * queries * keys / (2 if causal else 1)
    forward = best(partial(kernel.forward, q, k, v, scale, causal), REPETITIONS)
    backward = best(partial(kernel.backward, grad, q, k, v, out, lse, scale, causal), REPETITIONS)
    if causal:
        return flops / forward, 2.5 * flops / backward, None
    both = best(partial(backward_by_triangles, kernel.backward, grad, q, k, v, out, lse, scale), REPETITIONS)
    return flops / forward, 2.5 * flops / backward, 2.5 * flops / both


def made_up(tokens: int, width: int) -> Tensor:
    """[1, H, tokens, width], tokens first in memory."""
    gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    return torch.randn(tokens, HEADS, width, device=device, dtype=dtype).transpose(0, 1).unsqueeze(0)


if __name__ == "__main__":
    raise SystemExit(main())
