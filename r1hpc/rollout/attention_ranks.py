"""Which data-parallel attention rank of an engine takes a request: all samples of a prompt the same one.

SGLang gives every attention rank the same random seed (measured on 0.5.21: 8 samples of a prompt on two ranks were 4
different ones, each twice), so equal prompts on different ranks may get equal samples. The rank that has a prompt also
has its prefix in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy
from numpy.typing import NDArray


class AttentionRanks:
    """Deals prompts to ranks, each to the one with the fewest requests in flight."""

    def __init__(self, count: int) -> None:
        """count: sglang.dp_size with enable_dp_attention, else 1."""
        self._running = [0] * count
        self._ranks: dict[bytes, tuple[int, int]] = {}
        """Rank and requests in flight of each prompt that has any."""

    @contextmanager
    def take(self, prompt: NDArray[numpy.int32]) -> Iterator[int | None]:
        """The rank for a request, which is in flight inside; None where there is only one, and nothing to be said."""
        if len(self._running) == 1:
            yield None
            return
        key = prompt.tobytes()
        rank, running = self._ranks.get(key, (min(range(len(self._running)), key=self._running.__getitem__), 0))
        self._ranks[key] = rank, running + 1
        self._running[rank] += 1
        try:
            yield rank
        finally:
            self._running[rank] -= 1
            rank, running = self._ranks.pop(key)
            if running > 1:
                self._ranks[key] = rank, running - 1
