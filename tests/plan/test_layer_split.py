"""Layers of each pipeline stage."""

from __future__ import annotations

import pytest

from r1hpc.plan.layers import dense_layers_in, split_layers


@pytest.mark.parametrize(
    ("layers", "stages", "first", "last", "expected"),
    [
        (61, 4, None, 13, (16, 16, 16, 13)),
        (61, 8, 7, 6, (7, 8, 8, 8, 8, 8, 8, 6)),
        (61, 4, 13, None, (13, 16, 16, 16)),
        (64, 4, None, None, (16, 16, 16, 16)),
        (61, 1, None, None, (61,)),
        (61, 1, None, 61, (61,)),
        (5, 2, 3, 2, (3, 2)),
        (5, 2, None, 2, (3, 2)),
    ],
)
def test_layers_divide_around_the_given_ends(
    layers: int, stages: int, first: int | None, last: int | None, expected: tuple[int, ...]
) -> None:
    assert split_layers(layers, stages, first, last) == expected


@pytest.mark.parametrize(
    ("layers", "stages", "first", "last", "words"),
    [
        (
            61,
            4,
            None,
            None,
            "61 layers cannot be shared evenly by 4 stages; a last stage of 13 or 16 layers would",
        ),
        (61, 4, None, 14, "61 layers - last(14) = 47 cannot be shared evenly by 3 other stages"),
        (61, 8, 7, 7, "61 layers - first(7) - last(7) = 47 cannot be shared evenly by 6 other stages"),
        (5, 2, 3, 3, "5 layers - first(3) - last(3) = -1 cannot be shared evenly by 0 other stages"),
        (5, 8, None, None, "5 layers cannot be shared evenly by 8 stages"),
        (61, 1, None, 13, "one stage holds all 61 layers"),
    ],
)
def test_a_split_that_does_not_divide_shows_its_arithmetic(
    layers: int, stages: int, first: int | None, last: int | None, words: str
) -> None:
    with pytest.raises(ValueError) as caught:
        split_layers(layers, stages, first, last)
    assert words in str(caught.value)


def test_the_advised_last_stage_does_divide() -> None:
    for last in (13, 16):
        assert sum(split_layers(61, 4, None, last)) == 61


@pytest.mark.parametrize(("first", "count", "dense"), [(0, 16, 3), (0, 2, 2), (2, 3, 1), (3, 4, 0)])
def test_dense_layers_are_the_models_first(first: int, count: int, dense: int) -> None:
    assert dense_layers_in(first, count, num_dense_layers=3) == dense
