"""Level micro-batches by cost, and deal them to ranks so that all have as much to do."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy

LEVELED_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
"""Of the items, longest first, that are placed by cost; the shorter ones then fill what room is left."""


def level(sizes: Sequence[int], costs: Sequence[int], capacity: int, count: int) -> list[list[int]] | None:
    """`count` bins of items whose costs are as even as the capacity lets them be; null where none were found.

    sizes: descending; those beyond the capacity get a bin of their own. The fuller all bins must be, the fewer items
    can be placed by cost.
    """
    for share in LEVELED_SHARES:
        # The first `count` go to empty bins, so that none stays empty.
        leveled = max(count, int(share * len(sizes)))
        if bins := _fill(sizes, costs, capacity, count, leveled):
            return bins
    return None


def _fill(
    sizes: Sequence[int], costs: Sequence[int], capacity: int, count: int, leveled: int
) -> list[list[int]] | None:
    """The first `leveled` items each to the cheapest bin with room, the others to the fullest with room."""
    bins: list[list[int]] = [[] for _ in range(count)]
    room = numpy.full(count, capacity, dtype=numpy.int64)
    cost = numpy.zeros(count)
    for item in range(leveled):
        size = sizes[item]
        # Oversize items come first of all, and their bins are full from then on.
        place = item if size > capacity else int(numpy.where(room >= size, cost, numpy.inf).argmin())
        if room[place] < min(size, capacity):
            return None
        bins[place].append(item)
        room[place] -= min(size, capacity)
        cost[place] += costs[item]
    rooms = sorted((int(left), place) for place, left in enumerate(room))
    for item in range(leveled, len(sizes)):
        found = bisect_left(rooms, (sizes[item], -1))
        if found == count:
            return None
        left, place = rooms.pop(found)
        insort(rooms, (left - sizes[item], place))
        bins[place].append(item)
    return bins


def deal(costs: Sequence[int], ranks: int) -> list[list[int]]:
    """[rank][round]: equally many to each rank, at about equal sums; len(costs) must be a multiple of ranks.

    Those of a round, which ranks with experts in common do at the same time, are neighbors by cost. Rounds that differ
    most are dealt first, each from the dearest to the rank that has least.
    """
    dearest = sorted(range(len(costs)), key=lambda place: (-costs[place], place))
    rounds = [dearest[begin : begin + ranks] for begin in range(0, len(dearest), ranks)]
    load = [0] * ranks
    dealt: list[list[int]] = [[0] * len(rounds) for _ in range(ranks)]
    for number in sorted(range(len(rounds)), key=lambda n: costs[rounds[n][-1]] - costs[rounds[n][0]]):
        for place, rank in zip(rounds[number], sorted(range(ranks), key=load.__getitem__), strict=True):
            dealt[rank][number] = place
            load[rank] += costs[place]
    return dealt
