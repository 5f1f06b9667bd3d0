"""Packing: every sample once, the capacity, equal counts, the fewest micro-batches, and even costs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.packing import CAPACITY, realistic_lengths
from r1hpc.train.balance import deal, level
from r1hpc.train.flops import SequenceCost
from r1hpc.train.packing import Packing, PackingError, pack

R1_COST = SequenceCost(per_token=73_400_000_000, per_pair=2_498_560)


def square(length: int) -> int:
    return 100 * length + length * length


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[int], int, int]:
    """Lengths, capacity and ranks of a step, some samples longer than the capacity."""
    ranks = draw(st.integers(1, 4))
    longest = draw(st.sampled_from((10, 40, 120)))  # many to a micro-batch, or few
    lengths = draw(st.lists(st.integers(2, longest), min_size=ranks, max_size=10 * ranks))
    return lengths[: len(lengths) // ranks * ranks], draw(st.integers(10, 100)), ranks


def lengths_of(packing: Packing, lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """The lengths in each micro-batch, without saying which sample or rank."""
    return sorted(tuple(sorted(lengths[p] for p in positions)) for rank in packing for positions in rank)


def rank_costs(packing: Packing, lengths: Sequence[int]) -> list[list[int]]:
    return [[sum(R1_COST(lengths[p]) for p in positions) for positions in rank] for rank in packing]


def fewest_bins(lengths: Sequence[int], capacity: int) -> int:
    """By trying everything: the next item goes to each open bin with room, or to a new one."""

    def place(item: int, rooms: tuple[int, ...]) -> int:
        if item == len(lengths):
            return len(rooms)
        size = lengths[item]
        found = [place(item + 1, (*rooms, max(capacity, size) - size))]
        for number, room in enumerate(rooms):
            if room >= size and room not in rooms[:number]:
                found.append(place(item + 1, (*rooms[:number], room - size, *rooms[number + 1 :])))
        return min(found)

    return place(0, ())


@given(steps(), st.booleans())
def test_every_sample_once_under_the_cap_unless_alone_equally_many_and_none_empty(
    step: tuple[list[int], int, int], balance: bool
) -> None:
    lengths, capacity, ranks = step
    packing = pack(lengths, capacity=capacity, ranks=ranks, cost=square, balance=balance)
    assert len(packing) == ranks
    assert len({len(rank) for rank in packing}) == 1
    micro_batches = [positions for rank in packing for positions in rank]
    assert sorted(p for positions in micro_batches for p in positions) == list(range(len(lengths)))
    assert all(positions and list(positions) == sorted(positions) for positions in micro_batches)
    assert all(len(ps) == 1 or sum(lengths[p] for p in ps) <= capacity for ps in micro_batches)


@given(steps(), st.booleans(), st.randoms(use_true_random=False))
def test_another_order_changes_only_which_of_equally_long_samples_is_where(
    step: tuple[list[int], int, int], balance: bool, shuffler: random.Random
) -> None:
    lengths, capacity, ranks = step
    shuffled = lengths.copy()
    shuffler.shuffle(shuffled)
    before = pack(lengths, capacity=capacity, ranks=ranks, cost=square, balance=balance)
    after = pack(shuffled, capacity=capacity, ranks=ranks, cost=square, balance=balance)
    assert lengths_of(before, lengths) == lengths_of(after, shuffled)
    if balance:
        # The ranks may have other numbers, and have the same to do.
        assert sorted(lengths_of((rank,), lengths) for rank in before) == sorted(
            lengths_of((rank,), shuffled) for rank in after
        )


@given(st.lists(st.integers(2, 60), min_size=4, max_size=7), st.integers(20, 100), st.sampled_from((1, 2)))
def test_micro_batches_are_the_fewest_or_as_few_as_best_fit_promises(
    lengths: list[int], capacity: int, ranks: int
) -> None:
    lengths = lengths[: len(lengths) // ranks * ranks]
    promised = (11 * fewest_bins(lengths, capacity) + 6) // 9  # Dosa 2007: 11/9 of the fewest + 6/9
    for balance in (False, True):
        packing = pack(lengths, capacity=capacity, ranks=ranks, cost=square, balance=balance)
        assert ranks * len(packing[0]) <= -(-promised // ranks) * ranks


def test_small_ones_fill_what_long_ones_leave_and_the_order_of_samples_is_kept() -> None:
    # 6 + 4, 7 + 3, 5 + 5 of 10: nothing is left over.
    packing = pack([4, 3, 5, 6, 7, 5], capacity=10, ranks=1, cost=square, balance=False)
    assert packing == (((0, 3), (1, 4), (2, 5)),)


def test_an_oversize_sample_is_alone_and_whole() -> None:
    packing = pack([3, 25, 4, 3], capacity=10, ranks=1, cost=square, balance=True)
    assert packing == (((0, 2, 3), (1,)),)


def test_a_micro_batch_is_halved_when_a_rank_would_have_none() -> None:
    # All four fit one micro-batch, and two ranks need one each: 5 | 4 + 1 would be 10 and 5, so 5 + 1 and 4 + 2.
    packing = pack([5, 4, 2, 1], capacity=20, ranks=2, cost=lambda length: length, balance=False)
    assert packing == (((0, 3),), ((1, 2),))


def test_without_balance_ranks_take_micro_batches_in_turn() -> None:
    packing = pack([8, 7, 9, 8], capacity=10, ranks=2, cost=square, balance=False)
    assert packing == (((0,), (2,)), ((1,), (3,)))


def test_balance_deals_the_dearest_with_the_cheapest() -> None:
    # By length 9 + 6 and 8 + 7 on each rank; 9 and 8 at the same time, 7 and 6 at the same time.
    packing = pack([6, 7, 8, 9], capacity=10, ranks=2, cost=lambda length: length, balance=True)
    assert packing == (((0,), (3,)), ((1,), (2,)))


def test_one_sample_each_without_dynamic_batches() -> None:
    packing = pack([1, 9, 1, 9], capacity=None, ranks=2, cost=square, balance=False)
    assert packing == (((0,), (2,)), ((1,), (3,)))
    balanced = pack([1, 9, 1, 9], capacity=None, ranks=2, cost=square, balance=True)
    assert [sum(square([1, 9, 1, 9][p]) for (p,) in rank) for rank in balanced] == [100 + 1 + 900 + 81] * 2


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", range(4))
def test_realistic_lengths_are_packed_full_and_evenly(ranks: int, seed: int) -> None:
    lengths = realistic_lengths(1024, seed)
    packing = pack(lengths, capacity=CAPACITY, ranks=ranks, cost=R1_COST, balance=True)
    plain = pack(lengths, capacity=CAPACITY, ranks=ranks, cost=R1_COST, balance=False)
    fewest = -(-sum(lengths) // CAPACITY)
    assert all(sum(lengths[p] for p in positions) <= CAPACITY for rank in packing for positions in rank)
    assert len(packing[0]) == len(plain[0])
    assert fewest <= ranks * len(packing[0]) <= fewest + 1 + ranks  # the rounding to ranks, and one
    costs = rank_costs(packing, lengths)
    per_rank = [sum(rank) for rank in costs]
    assert max(per_rank) / mean(per_rank) < 1.005
    dearest = max(max(rank) for rank in costs)
    assert dearest / mean(c for rank in costs for c in rank) < 1.12
    assert dearest < max(max(rank) for rank in rank_costs(plain, lengths))
    # Ranks that share experts wait for the dearest of each round.
    waited = sum(max(round_) for round_ in zip(*costs, strict=True))
    assert waited / mean(per_rank) < 1.01


def test_what_was_leveled_keeps_to_the_capacity_however_tight() -> None:
    # 33 + 33 + 34, 40 + 60, 50 + 50: to the last token. By cost alone 60, 50 and 50 would each get a bin, then 40 the
    # cheapest, one of 50, and 34 the other: nothing is left for 33 + 33 but the room of 40.
    bins = level([60, 50, 50, 40, 34, 33, 33], [60, 50, 50, 40, 34, 33, 33], 100, 3)
    assert bins is None
    lengths = [60, 50, 50, 40, 34, 33, 33]
    packing = pack(lengths, capacity=100, ranks=1, cost=square, balance=True)
    assert lengths_of(packing, lengths) == [(33, 33, 34), (40, 60), (50, 50)]


def test_rounds_that_differ_most_are_dealt_first() -> None:
    # 10 | 4, then 17 + 10 | 20 + 4, then 29 + 27 | 30 + 24. The other way round it would be 57 | 53.
    costs = [30, 29, 20, 17, 10, 4]
    dealt = deal(costs, 2)
    assert [[costs[place] for place in places] for places in dealt] == [[29, 17, 10], [30, 20, 4]]


def test_fewer_samples_than_ranks_are_refused() -> None:
    with pytest.raises(PackingError, match="3 samples for 4 data-parallel ranks"):
        pack([5, 5, 5], capacity=10, ranks=4, cost=square, balance=True)


def test_counts_that_cannot_be_equal_are_refused_with_the_arithmetic() -> None:
    with pytest.raises(PackingError, match=r"5 samples need 5 micro-batches .* 2 \* 4 = 8.* multiple of 4"):
        pack([11] * 5, capacity=10, ranks=4, cost=square, balance=True)
    with pytest.raises(PackingError, match="one sample each"):
        pack([5] * 3, capacity=None, ranks=2, cost=square, balance=False)
