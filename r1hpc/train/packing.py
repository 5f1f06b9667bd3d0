"""Which samples make up which micro-batch of which data-parallel rank: a pure function of their lengths.

Fewest micro-batches come first: each fills a pass through the pipeline. Then, if asked for, even costs, over ranks and
over micro-batches. benchmarks/packing.py measures it beside first-fit, which needs more of them, and Karmarkar-Karp
over counts, which exceeds the capacity when it is given as few.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence

from r1hpc.errors import R1hpcError
from r1hpc.train.balance import deal, level

Packing = tuple[tuple[tuple[int, ...], ...], ...]
"""[rank][micro-batch]: positions of its samples, ascending. Equally many micro-batches on every rank, none empty."""


class PackingError(R1hpcError):
    """Samples that cannot be packed into equally many micro-batches for every data-parallel rank."""


def pack(
    lengths: Sequence[int], *, capacity: int | None, ranks: int, cost: Callable[[int], int], balance: bool
) -> Packing:
    """Deal samples of these raw lengths to data-parallel ranks, in micro-batches of at most `capacity` tokens.

    capacity: max_tokens_per_gpu * context ranks; a longer sample is alone and whole. null: every sample is alone.
    cost: of a sample by its length, in any unit, growing with it (`flops.sequence_cost`).
    balance: level costs over ranks and micro-batches; otherwise micro-batches go to the ranks in turn.
    Samples of equal length are taken in the order of their positions, and so are micro-batches, where either is free:
    the order of `lengths` decides nothing else. Raises PackingError.
    """
    if len(lengths) < ranks:
        raise PackingError(
            f"{len(lengths)} samples for {ranks} data-parallel ranks: each needs at least one in every optimizer step;"
            " raise the samples of a step (rollout_batch_size * n_samples_per_prompt / num_steps_per_rollout)"
        )
    # From here on items are places in this order, so that nothing depends on the order in which samples came.
    longest_first = sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))
    sizes = [lengths[position] for position in longest_first]
    costs = [cost(size) for size in sizes]
    bins = [[item] for item in range(len(sizes))] if capacity is None else best_fit(sizes, capacity)
    count = _multiple(len(bins), ranks, len(sizes), capacity)
    leveled = level(sizes, costs, capacity, count) if balance and capacity is not None else None
    bins = leveled or _split(bins, costs, count)
    micro_batches = [tuple(sorted(longest_first[item] for item in items)) for items in bins]
    if not balance:
        micro_batches.sort()
        return tuple(tuple(micro_batches[rank::ranks]) for rank in range(ranks))
    dealt = deal([sum(costs[item] for item in items) for items in bins], ranks)
    return _in_order([[micro_batches[place] for place in places] for places in dealt])


def best_fit(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Each item to the fullest bin that still has room, else to a new one; those beyond the capacity alone.

    sizes: descending. Never more than 11/9 of the fewest possible and one (Johnson 1974); on real lengths the fewest
    almost always, since many short samples fill what the long ones leave.
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []
    """Room and number of every bin, sorted."""
    for item, size in enumerate(sizes):
        found = bisect_left(rooms, (size, -1))
        room, number = rooms.pop(found) if found < len(rooms) else (capacity, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(item)
        # An oversize item leaves less than nothing.
        insort(rooms, (room - size, number))
    return bins


def _multiple(bins: int, ranks: int, samples: int, capacity: int | None) -> int:
    """The least number of micro-batches, from `bins` on, that the ranks can share equally."""
    count = -(-bins // ranks) * ranks
    if count > samples:
        rule = "one sample each" if capacity is None else f"at most {capacity} tokens each"
        raise PackingError(
            f"{samples} samples need {bins} micro-batches ({rule}); {ranks} data-parallel ranks do equally many, that"
            f" is {count // ranks} * {ranks} = {count}, but no more than {samples} can be made of {samples} samples:"
            f" make the samples of a step a multiple of {ranks}"
        )
    return count


def _split(bins: list[list[int]], costs: Sequence[int], count: int) -> list[list[int]]:
    """Halve the dearest bin that has two items or more until there are `count`: what fits stays fitting."""
    bins = list(bins)
    while len(bins) < count:
        dearest = max(
            (number for number in range(len(bins)) if len(bins[number]) > 1),
            key=lambda number: (sum(costs[item] for item in bins[number]), -number),
        )
        halves: tuple[list[int], list[int]] = ([], [])
        sums = [0, 0]
        for item in bins[dearest]:
            lighter = min((0, 1), key=lambda half: (sums[half], len(halves[half])))
            halves[lighter].append(item)
            sums[lighter] += costs[item]
        bins[dearest] = halves[0]
        bins.append(halves[1])
    return bins


def _in_order(dealt: list[list[tuple[int, ...]]]) -> Packing:
    """The same ranks and rounds, numbered by the first sample that each has."""
    rounds = sorted(range(len(dealt[0])), key=lambda number: min(rank[number] for rank in dealt))
    return tuple(sorted(tuple(rank[number] for number in rounds) for rank in dealt))
