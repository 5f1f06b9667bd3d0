"""Dealing things of known size to a number of takers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def contiguous_shares(items: Sequence[T], size: Callable[[T], int], count: int) -> list[list[T]]:
    """Cut a sequence into `count` runs of nearly equal size: sequential reads stay sequential."""
    total = sum(map(size, items))
    shares: list[list[T]] = [[] for _ in range(count)]
    before = 0
    for item in items:
        # By its middle: an item goes to the share that most of it lies in.
        middle = before + size(item) / 2
        shares[min(count - 1, int(middle * count / total)) if total else 0].append(item)
        before += size(item)
    return shares


def deal_largest_first(items: Iterable[T], size: Callable[[T], int], loads: Sequence[int]) -> list[list[T]]:
    """Give each item, the largest first, to the taker with the least load so far; `loads` are those at the start.

    Graham's rule: no taker gets more than 4/3 of the best possible. Ties go to the first, so the result is one.
    """
    load = list(loads)
    dealt: list[list[T]] = [[] for _ in load]
    for item in sorted(items, key=size, reverse=True):
        taker = load.index(min(load))
        dealt[taker].append(item)
        load[taker] += size(item)
    return dealt
