"""Says how far a pass over many prompts is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from r1hpc.plan.units import show_seconds

Item = TypeVar("Item")
Say = Callable[[str], None]

_EVERY_S = 5.0


def with_progress(
    items: Iterable[Item], total: int, what: str, say: Say, clock: Callable[[], float] = time.monotonic
) -> Iterator[Item]:
    """The items; a line every 5 s: `tokenizing prompts: 120,000 of 1,000,000, 30,000/s, 29 s left`.

    A pass that is over sooner says nothing.
    """
    began = clock()
    due = began + _EVERY_S
    for done, item in enumerate(items):
        if (now := clock()) >= due:
            due = now + _EVERY_S
            rate = done / (now - began)
            left = f"{show_seconds((total - done) / rate)} left" if rate > 0 else "no estimate yet"
            say(f"{what}: {done:,} of {total:,}, {rate:,.0f}/s, {left}")
        yield item
