"""What lengths that were never seen cost attention: cuDNN through PyTorch builds a plan for each shape and thread.

    python -m benchmarks.lengths

A rollout's samples have lengths of their own, and so have those of every later rollout. Milliseconds of attention of
one layer, forward and backward, over a micro-batch: with new lengths, with the same ones again, with other new ones.
In processes of their own: cuDNN with lengths as they come, and padded as the trainer pads them, to multiples of
GPU_CHUNK; FlashAttention-2 over all sequences at once, values padded to the width of keys. H = 16, key width 192, value
width 128, bf16. About a minute on an H200; a CPU has no plans to build.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from r1hpc.model.context_attention import packed_attention
from r1hpc.model.packed import pack_sequences
from r1hpc.train.schedule import GPU_CHUNK

HEADS, KEY_WIDTH, VALUE_WIDTH = 16, 192, 128
SCALE = KEY_WIDTH**-0.5
CASES = {"short": (256, 16, 48), "long": (12, 1000, 6000)}
"""Samples, and between which lengths."""
WAYS = {"cudnn": "cuDNN", "padded": "cuDNN, padded lengths", "flash": "flash, all at once"}
Attend = Callable[[Tensor, Tensor, Tensor, Sequence[int]], Tensor]


def main() -> int:
    """Measure every way in its process; or, as one of them, one."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return 0
    figures = {}
    print("| way | case | new lengths | the same | others |\n|---|---|---|---|---|")
    ways = WAYS if torch.cuda.is_available() else {"exact": "exact"}
    for way, name in ways.items():
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.lengths", way]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        if done.returncode:
            print(f"| {name} | failed: {done.stderr.strip().splitlines()[-1][:200]} |")
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        for case, times in found.items():
            print(f"| {name} | {case} | {' | '.join(f'{ms:.1f} ms' for ms in times)} |", flush=True)
            figures[f"{name}: {case}"] = times
    print(json.dumps(figures))
    return 0


def measure(way: str) -> dict[str, list[float]]:
    """Milliseconds of each case: new lengths, the same, others."""
    gpu = torch.cuda.is_available()
    attend: Attend = flash_at_once if way == "flash" else one_by_one
    found = {}
    for case, (count, low, high) in CASES.items():
        draw = random.Random(case)
        step = GPU_CHUNK if way == "padded" else 1
        one, other = (
            [-(-draw.randint(low, high if gpu else low + 8) // step) * step for _ in range(count)] for _ in range(2)
        )
        # Kernels are loaded at their first use: a length that comes in no case.
        seconds(attend, [low // 2])
        found[case] = [1e3 * seconds(attend, lengths) for lengths in (one, one, other)]
    return found


def seconds(attend: Attend, lengths: Sequence[int]) -> float:
    """Forward and backward."""
    gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    widths = (KEY_WIDTH, KEY_WIDTH, VALUE_WIDTH)
    query, key, value = (
        torch.randn(sum(lengths), HEADS, width, device=device, dtype=dtype, requires_grad=True) for width in widths
    )
    grad = torch.randn(sum(lengths), HEADS, VALUE_WIDTH, device=device, dtype=dtype)
    if gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    attend(query, key, value, lengths).backward(grad)  # type: ignore[no-untyped-call]
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def one_by_one(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    """As the trainer does it."""
    return packed_attention(query, key, value, pack_sequences(lengths, device=query.device), SCALE)


def flash_at_once(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int]) -> Tensor:
    """One call for all sequences; autograd knows the backward pass of PyTorch's operator."""
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(query.device)
    widened = nn.functional.pad(value, (0, KEY_WIDTH - VALUE_WIDTH))
    out, *_ = torch.ops.aten._flash_attention_forward(
        query, key, widened, ends, ends, max(lengths), max(lengths), 0.0, True, False, scale=SCALE
    )
    return out[..., :VALUE_WIDTH]  # type: ignore[no-any-return]


if __name__ == "__main__":
    sys.exit(main())
