"""Tokens to their experts and back: r1hpc.model.permutation beside megatron-core's functions without fusion.

    python -m benchmarks.permutation

Forward, and forward with backward, in milliseconds; GB/s of the least that must move (rows read and written once),
beside a plain copy on the device. 15 seconds on a GPU; without one a few tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.moe import moe_utils
from torch import Tensor

from benchmarks.step import best
from r1hpc.model import permutation

CASES = {"1.2b": (16384, 32, 4, 2048), "r1": (2048, 256, 8, 7168)}
"""Tokens, experts, experts of a token, width: of a micro-batch of the colocated cycle, and of a tensor rank of R1."""
REPETITIONS = 10


def main() -> int:
    """Measure and report."""
    gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if gpu else ("cpu", torch.float32)
    figures: dict[str, float] = {}
    print("| case | functions | permute ms | with backward | unpermute ms | with backward | GB/s of unpermute, copy |")
    print("|" + "---|" * 7)
    for name, (tokens, experts, per_token, width) in CASES.items():
        count = tokens if gpu else tokens // 64
        x = torch.randn(count, width, device=device).to(dtype)
        routing_map = torch.rand(count, experts, device=device).argsort(1).argsort(1) < per_token
        copied = torch.empty(count * per_token, width, device=device, dtype=dtype)
        plain_ms = 1e3 * best(lambda: copied.mul_(1.0), REPETITIONS)  # noqa: B023
        for label, functions in (("upstream", moe_utils), ("ours", permutation)):
            found = milliseconds(functions, x, routing_map, per_token)
            moved = (per_token + 1) * x.nbytes / 1e6
            rates = f"{moved / found['unpermute']:.0f}, {2 * copied.nbytes / 1e6 / plain_ms:.0f}"
            print(f"| {name} | {label} | {' | '.join(f'{ms:.3f}' for ms in found.values())} | {rates} |", flush=True)
            figures |= {f"{name}_{label}_{what}_ms": ms for what, ms in found.items()}
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    return 0


def milliseconds(functions: Any, x: Tensor, routing_map: Tensor, per_token: int) -> dict[str, float]:
    """Of each function alone."""
    probs = torch.rand(routing_map.shape, device=x.device)
    tokens = x.clone().requires_grad_()

    def permute() -> tuple[Tensor, Tensor]:
        rows, _, order, *_ = functions.permute(
            tokens, routing_map, probs=probs, num_out_tokens=len(x) * per_token, fused=False, drop_and_pad=False
        )
        return rows, order

    rows, order = permute()
    leaf, of_rows, of_tokens = rows.detach().requires_grad_(), torch.randn_like(rows), torch.randn_like(x)

    def unpermute() -> Tensor:
        back: Tensor = functions.unpermute(leaf, order, restore_shape=x.shape, routing_map=routing_map)
        return back

    works: dict[str, Callable[[], object]] = {
        "permute": permute,
        "permute_both": lambda: torch.autograd.grad(permute()[0], tokens, of_rows),
        "unpermute": unpermute,
        "unpermute_both": lambda: torch.autograd.grad(unpermute(), leaf, of_tokens),
    }
    for work in works.values():
        work()
    return {name: 1e3 * best(work, REPETITIONS) for name, work in works.items()}


if __name__ == "__main__":
    raise SystemExit(main())
