"""The order of an epoch: pure, a permutation of the original order, the same with every numpy."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1hpc.data.order import epoch_order

seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(num=st.integers(1, 300), seed=seeds, epoch=st.integers(0, 5000), shuffle=st.booleans())
def test_an_order_has_every_place_once_and_is_pure(num: int, seed: int, epoch: int, shuffle: bool) -> None:
    order = epoch_order(num, seed=seed, epoch=epoch, shuffle=shuffle)
    assert sorted(order.tolist()) == list(range(num))
    numpy.random.seed(num)
    drawn = numpy.random.random()
    numpy.random.seed(num)
    assert epoch_order(num, seed=seed, epoch=epoch, shuffle=shuffle).tolist() == order.tolist()
    assert numpy.random.random() == drawn  # the generator of others is not moved


def test_without_shuffle_it_is_the_order_of_the_file() -> None:
    assert epoch_order(5, seed=42, epoch=3, shuffle=False).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("seed", "epoch", "expected"),
    [
        (42, 0, [4, 8, 1, 9, 3, 6, 0, 7, 2, 5]),
        (42, 1, [1, 2, 8, 5, 3, 9, 6, 0, 4, 7]),
        (43, 0, [2, 1, 5, 7, 8, 9, 4, 0, 6, 3]),
    ],
)
def test_recorded_orders_stay_what_they_are(seed: int, epoch: int, expected: list[int]) -> None:
    # A run that is resumed with another version must find the order that it was started with.
    assert epoch_order(10, seed=seed, epoch=epoch, shuffle=True).tolist() == expected


def test_seed_and_epoch_are_not_added() -> None:
    orders = {tuple(epoch_order(50, seed=40 + a, epoch=b, shuffle=True).tolist()) for a in range(5) for b in range(5)}
    assert len(orders) == 25


def test_each_place_comes_first_equally_often() -> None:
    # 6,000 epochs of 6 prompts: a count is binomial(6000, 1/6), 1000 with a standard deviation of 28.9.
    firsts = [int(epoch_order(6, seed=7, epoch=epoch, shuffle=True)[0]) for epoch in range(6000)]
    assert all(abs(count - 1000) < 5 * 28.9 for count in numpy.bincount(firsts, minlength=6))
