"""Runs of consecutive elements of a tensor, cut into boxes: how a flat shard of a parameter becomes checkpointable."""

from __future__ import annotations

import math
from collections.abc import Iterator

from r1hpc.checkpoint.boxes import Box


def boxes_of_run(box: Box, begin: int, end: int) -> Iterator[Box]:
    """The fewest boxes that are the elements [begin, end) of `box` in row-major order, in that order.

    Each is one run itself: a single index on the leading axes, a range on one, all of those after it. Of n axes there
    are at most 2n - 1.
    """
    assert 0 <= begin <= end <= box.volume, f"[{begin}, {end}) of {box.volume} elements"
    if begin == end:
        return
    if not box.sizes:
        yield box
        return
    row = math.prod(box.sizes[1:])
    # Whole rows lie between the rounded-up begin and the rounded-down end; what is left of either belongs to one row.
    first, last = -(-begin // row), end // row
    if first > last:
        yield from _in_row(box, last, begin - last * row, end - last * row)
        return
    if begin < first * row:
        yield from _in_row(box, first - 1, begin - (first - 1) * row, row)
    if first < last:
        yield Box((box.offset[0] + first, *box.offset[1:]), (last - first, *box.sizes[1:]))
    if last * row < end:
        yield from _in_row(box, last, 0, end - last * row)


def _in_row(box: Box, number: int, begin: int, end: int) -> Iterator[Box]:
    """The boxes of a run within row `number` of the first axis."""
    for part in boxes_of_run(Box(box.offset[1:], box.sizes[1:]), begin, end):
        yield Box((box.offset[0] + number, *part.offset), (1, *part.sizes))


def joined(first: Box, second: Box) -> Box | None:
    """The box whose elements, in row-major order, are those of `first`, then those of `second`; null: there is none."""
    axis = 0
    while axis < len(first.sizes) - 1 and first.sizes[axis] == second.sizes[axis] == 1 and _same(first, second, axis):
        axis += 1
    if axis == len(first.sizes) or first.end[axis] != second.offset[axis]:
        return None
    if not all(_same(first, second, other) for other in range(axis + 1, len(first.sizes))):
        return None
    sizes = (*first.sizes[:axis], first.sizes[axis] + second.sizes[axis], *first.sizes[axis + 1 :])
    return Box(first.offset, sizes)


def _same(first: Box, second: Box, axis: int) -> bool:
    return first.offset[axis] == second.offset[axis] and first.sizes[axis] == second.sizes[axis]
