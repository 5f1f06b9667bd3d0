"""A flat range of a box is cut into the fewest boxes that are exactly it, in order."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1hpc.checkpoint.boxes import Box
from r1hpc.train.checkpoint.runs import boxes_of_run, joined

Cut = tuple[Box, int, int]
Places = tuple[tuple[int, ...], tuple[int, ...]]
"""Offset and sizes."""


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    sizes = tuple(draw(st.lists(st.integers(1, 5), min_size=0, max_size=4)))
    offset = tuple(draw(st.integers(0, 9)) for _ in sizes)
    begin = draw(st.integers(0, math.prod(sizes)))
    end = draw(st.integers(begin, math.prod(sizes)))
    return Box(offset, sizes), begin, end


def indices(box: Box) -> list[tuple[int, ...]]:
    """Every index in the box, in row-major order."""
    return list(itertools.product(*(range(begin, end) for begin, end in zip(box.offset, box.end, strict=True))))


def fewest(run: list[tuple[int, ...]]) -> int:
    """The least number of boxes, by taking at each place the longest box that begins there, tried from the longest."""
    count = 0
    while run:
        length = next(n for n in range(len(run), 0, -1) if is_box(run[:n]))
        run, count = run[length:], count + 1
    return count


def is_box(run: list[tuple[int, ...]]) -> bool:
    sides = [len({index[axis] for index in run}) for axis in range(len(run[0]))]
    return math.prod(sides) == len(run)


@given(cuts())
def test_the_boxes_are_the_run_in_order(cut: Cut) -> None:
    box, begin, end = cut
    found = list(boxes_of_run(box, begin, end))
    assert [index for part in found for index in indices(part)] == indices(box)[begin:end]


@given(cuts())
def test_there_are_no_more_than_needed(cut: Cut) -> None:
    box, begin, end = cut
    found = list(boxes_of_run(box, begin, end))
    assert len(found) == fewest(indices(box)[begin:end])
    assert len(found) <= max(1, 2 * len(box.sizes) - 1)


@pytest.mark.parametrize(
    ("begin", "end", "parts"),
    [
        # Rows of 4 in planes of 12.
        (0, 24, [((5, 0, 0), (2, 3, 4))]),
        (12, 24, [((6, 0, 0), (1, 3, 4))]),
        (4, 12, [((5, 1, 0), (1, 2, 4))]),
        (1, 3, [((5, 0, 1), (1, 1, 2))]),
        (3, 14, [((5, 0, 3), (1, 1, 1)), ((5, 1, 0), (1, 2, 4)), ((6, 0, 0), (1, 1, 2))]),
        (7, 7, []),
    ],
)
def test_by_hand(begin: int, end: int, parts: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    assert list(boxes_of_run(Box((5, 0, 0), (2, 3, 4)), begin, end)) == [Box(*part) for part in parts]


@given(cuts(), st.integers(0, 200))
def test_two_neighbors_are_joined_exactly_where_they_are_a_box(cut: Cut, at: int) -> None:
    box, begin, end = cut
    parts = list(boxes_of_run(box, begin, end))
    if len(parts) < 2:
        return
    first, second = parts[at % (len(parts) - 1) :][:2]
    run = indices(first) + indices(second)
    both = joined(first, second)
    # They are the fewest boxes already.
    assert both is None
    assert not is_box(run)
    for axis, size in enumerate(box.sizes):
        if size > 1 and all(other == 1 for other in box.sizes[:axis]):
            middle = 1 + at % (size - 1)
            halves = [
                Box(
                    (*box.offset[:axis], box.offset[axis] + first, *box.offset[axis + 1 :]),
                    (*box.sizes[:axis], last - first, *box.sizes[axis + 1 :]),
                )
                for first, last in ((0, middle), (middle, size))
            ]
            assert joined(*halves) == box


@pytest.mark.parametrize(
    ("first", "second", "both"),
    [
        # Gate and up of one expert, then two experts.
        (((3, 0, 0), (1, 5, 4)), ((3, 5, 0), (1, 5, 4)), ((3, 0, 0), (1, 10, 4))),
        (((3, 0, 0), (1, 10, 4)), ((4, 0, 0), (1, 10, 4)), ((3, 0, 0), (2, 10, 4))),
        (((3, 0, 0), (2, 10, 4)), ((5, 0, 0), (1, 10, 4)), ((3, 0, 0), (3, 10, 4))),
        # Halves that another rank's lie between; columns side by side, which do not follow each other; the wrong order.
        (((3, 0, 0), (1, 5, 4)), ((3, 10, 0), (1, 5, 4)), None),
        (((3, 0, 0), (1, 5, 2)), ((3, 0, 2), (1, 5, 2)), None),
        (((4, 0, 0), (1, 10, 4)), ((3, 0, 0), (1, 10, 4)), None),
        (((3, 0, 0), (1, 5, 4)), ((4, 0, 0), (1, 10, 4)), None),
        (((), ()), ((), ()), None),
    ],
)
def test_what_is_joined_by_hand(first: Places, second: Places, both: Places | None) -> None:
    assert joined(Box(*first), Box(*second)) == (None if both is None else Box(*both))
