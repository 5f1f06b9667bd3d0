"""Peak memory and time of chunked log-probs and entropies, forward and backward, beside log_softmax of all the logits.

    python benchmarks/logprobs.py

On a GPU: one tensor rank's share of DeepSeek-R1 (16,384 tokens, 16,160 of the vocabulary's 129,280 columns). Without
one: sizes of a few seconds. Prints a table and, last, the ratios as one JSON object; below 1 the chunks are better.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from r1hpc.train.logprobs import Entropy, TokenLogprobs, token_logprobs

TEMPERATURE = 0.8
REPEATS = 3


@dataclass(frozen=True)
class Sizes:
    """Of the last layer's work on one micro-batch."""

    tokens: int
    columns: int
    hidden: int
    chunk: int
    dtype: torch.dtype
    device: str

    @property
    def chunk_bytes(self) -> int:
        """Of one chunk of logits in float32."""
        return self.chunk * self.columns * 4


R1 = Sizes(tokens=16384, columns=16160, hidden=7168, chunk=1024, dtype=torch.bfloat16, device="cuda")
SMALL = Sizes(tokens=2048, columns=8192, hidden=128, chunk=128, dtype=torch.float32, device="cpu")

Score = Callable[[Tensor, Tensor, Tensor], TokenLogprobs]
"""Of hidden states, weight and targets."""


@dataclass(frozen=True)
class Cost:
    """Of scoring all tokens, and of the backward pass of that."""

    forward_bytes: int
    peak_bytes: int
    """Of both passes, beyond the hidden states and the weight."""
    seconds: float


def main() -> int:
    """Measure, and print what was found."""
    print(json.dumps({name: round(value, 3) for name, value in measure().items()}))
    return 0


def measure() -> dict[str, float]:
    """`logprob_peak_vs_naive` and `logprob_time_vs_naive`; prints the table behind them."""
    sizes = R1 if torch.cuda.is_available() else SMALL
    print(sizes)
    ours, full = cost(chunked(sizes.chunk), sizes), cost(naive, sizes)
    for name, found in (("chunked", ours), ("naive", full)):
        chunks = found.peak_bytes / sizes.chunk_bytes
        megabytes = found.peak_bytes / 1e6
        print(
            f"{name:<8} {1e3 * found.seconds:9.1f} ms {megabytes:9.1f} MB peak = {chunks:6.2f} chunks of float32 logits"
        )
    return {
        "logprob_peak_vs_naive": ours.peak_bytes / full.peak_bytes,
        "logprob_time_vs_naive": ours.seconds / full.seconds,
    }


def chunked(chunk: int, entropy: Entropy = Entropy.GRADIENT) -> Score:
    """What training does."""
    return partial(token_logprobs, temperature=TEMPERATURE, chunk=chunk, entropy=entropy)


def naive(hidden: Tensor, weight: Tensor, targets: Tensor) -> TokenLogprobs:
    """The definition: every logit at once, in float32."""
    logp = F.log_softmax((hidden @ weight.t()).float() / TEMPERATURE, dim=-1)
    return TokenLogprobs(logp.gather(1, targets[:, None]).squeeze(1), -(logp.exp() * logp).sum(dim=-1))


def cost(score: Score, sizes: Sizes) -> Cost:
    """The best time of a few, and the peak of one more."""
    seconds = min(timed(partial(forward_backward, score, *problem(sizes)), sizes.device) for _ in range(REPEATS))
    if sizes.device == "cuda":
        return replace(cuda_bytes(score, sizes), seconds=seconds)
    return replace(cpu_bytes(score, sizes), seconds=seconds)


def problem(sizes: Sizes) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, weight and targets; logits of about +-3."""
    torch.manual_seed(0)
    hidden = torch.randn(sizes.tokens, sizes.hidden, device=sizes.device).to(sizes.dtype)
    weight = torch.randn(sizes.columns, sizes.hidden, device=sizes.device).div_(sizes.hidden**0.5).to(sizes.dtype)
    targets = torch.randint(sizes.columns, (sizes.tokens,), device=sizes.device)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def forward_backward(score: Score, hidden: Tensor, weight: Tensor, targets: Tensor) -> None:
    """Leave gradients of a loss with both parts, the entropy as a metric where it has no graph."""
    hidden.grad = weight.grad = None
    torch.autograd.backward(scored(score, hidden, weight, targets))


def scored(score: Score, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Such a loss."""
    found = score(hidden, weight, targets)
    loss = -found.logprobs.mean()
    return loss if found.entropy is None else loss - 0.01 * found.entropy.mean()


def timed(work: Callable[[], None], device: str) -> float:
    """Seconds of a second run, until the device is done."""
    wait: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    work()
    wait()
    begin = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - begin


def cuda_bytes(score: Score, sizes: Sizes) -> Cost:
    """By the allocator's own count."""
    tensors = problem(sizes)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    loss = scored(score, *tensors)
    forward = torch.cuda.max_memory_allocated() - before
    torch.autograd.backward(loss)
    return Cost(forward, torch.cuda.max_memory_allocated() - before, seconds=0.0)


def cpu_bytes(score: Score, sizes: Sizes) -> Cost:
    """By counting the live results of every operation; what an operation frees before it returns is not seen."""
    tensors = problem(sizes)
    with LiveBytes() as live:
        loss = scored(score, *tensors)
        forward = live.peak
        torch.autograd.backward(loss)
    return Cost(forward, live.peak, seconds=0.0)


class LiveBytes(TorchDispatchMode):
    """Counts the memory of tensors made under it, while they live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, then look at what is alive."""
        given = {tensor.untyped_storage()._cdata for tensor in tree_iter((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                # A result in the memory of an argument that was made before is a view of it.
                if storage._cdata not in given:
                    weak = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                    self._live[storage._cdata] = (weak, storage.nbytes())
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result


if __name__ == "__main__":
    raise SystemExit(main())
