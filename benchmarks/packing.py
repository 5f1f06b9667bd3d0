"""How full and how even micro-batches are, and how long packing takes, beside first-fit and Karmarkar-Karp over counts.

    python -m benchmarks.packing [--samples 1024] [--seeds 9]

Samples as long reasoning has them, for R1 on 4 data-parallel ranks of 4 context ranks. Medians over seeds; prints a
table, and last all figures as one JSON object. Imbalance is the dearest over the mean, less 1; idle is the share of
time that ranks with experts in common wait for the dearest micro-batch of each round; overflow is what a micro-batch
of several samples exceeds the capacity by at most, as a share of it.
"""

from __future__ import annotations

import argparse
import heapq
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean, median

import numpy

from r1hpc.plan.model_shape import read_model_shape
from r1hpc.train.flops import SequenceCost, sequence_cost
from r1hpc.train.packing import Packing, pack

HOME = Path(__file__).resolve().parents[1]
RANKS = 4
CAPACITY = 4 * 16384
"""Context ranks * max_tokens_per_gpu."""
LONGEST_RESPONSE = 32768
REPETITIONS = 5

Packer = Callable[[Sequence[int], SequenceCost], Packing]


def measure(samples: int = 1024, seeds: int = 9) -> dict[str, float]:
    """All figures, medians over seeds. Takes about two seconds."""
    cost = sequence_cost(read_model_shape(HOME / "configs" / "models" / "deepseek-r1" / "config.json"))
    rounds: list[dict[str, float]] = []
    for seed in range(seeds):
        lengths = realistic_lengths(samples, seed)
        figures = {f"packing_ms_{samples}": 1e3 * seconds(partial(packed, lengths, cost))}
        for name, packer in PACKERS.items():
            found = quality(packer(lengths, cost), lengths, cost)
            figures |= {f"{name}_{figure}": value for figure, value in found.items()}
        rounds.append(figures)
    return {name: median(figures[name] for figures in rounds) for name in rounds[0]}


def realistic_lengths(samples: int, seed: int) -> list[int]:
    """Tokens of prompts (50 to 400) and responses: log-normal, and 15 % that ran to the limit."""
    random = numpy.random.default_rng(seed)
    prompts = random.integers(50, 401, samples)
    responses = numpy.exp(random.normal(numpy.log(7000), 0.8, samples)).astype(numpy.int64) + 1
    responses[random.random(samples) < 0.15] = LONGEST_RESPONSE
    return [int(length) for length in prompts + responses.clip(max=LONGEST_RESPONSE)]


def packed(lengths: Sequence[int], cost: SequenceCost) -> Packing:
    """Ours."""
    return pack(lengths, capacity=CAPACITY, ranks=RANKS, cost=cost, balance=True)


def first_fit(lengths: Sequence[int], cost: SequenceCost) -> Packing:
    """Samples go to the ranks in turn, and there to the first micro-batch with room; counts are not made equal."""
    ranks = []
    for rank in range(RANKS):
        bins: list[list[int]] = []
        rooms: list[int] = []
        for position in range(rank, len(lengths), RANKS):
            fitting = (number for number, room in enumerate(rooms) if room >= lengths[position])
            if (number := next(fitting, len(bins))) == len(bins):
                bins.append([])
                rooms.append(CAPACITY)
            bins[number].append(position)
            rooms[number] -= lengths[position]
        ranks.append(tuple(map(tuple, bins)))
    return tuple(ranks)


def karmarkar_karp(lengths: Sequence[int], cost: SequenceCost) -> Packing:
    """As many micro-batches on each rank as first-fit needs at most."""
    return _karmarkar_karp(lengths, cost, max(map(len, first_fit(lengths, cost))))


def karmarkar_karp_tight(lengths: Sequence[int], cost: SequenceCost) -> Packing:
    """As many as ours has: what keeping to the capacity is worth."""
    return _karmarkar_karp(lengths, cost, len(packed(lengths, cost)[0]))


def _karmarkar_karp(lengths: Sequence[int], cost: SequenceCost, count: int) -> Packing:
    """Karmarkar-Karp by cost over ranks, then by tokens over `count` micro-batches, whatever they come to."""
    ranks = []
    for positions in differencing([cost(length) for length in lengths], RANKS):
        parts = differencing([lengths[position] for position in positions], count)
        ranks.append(tuple(tuple(positions[place] for place in part) for part in parts))
    return tuple(ranks)


def differencing(values: Sequence[int], parts: int) -> list[list[int]]:
    """The largest differencing method (Karmarkar and Karp 1982) over `parts` parts: places of the values in each."""
    # (- spread, tie, [(sum, places), descending]): those that differ most are joined first.
    heap: list[tuple[int, int, list[tuple[int, list[int]]]]] = [
        (-value, place, [(value, [place]), *((0, []) for _ in range(parts - 1))]) for place, value in enumerate(values)
    ]
    heapq.heapify(heap)
    for tie in range(len(values), 2 * len(values) - 1):
        (_, _, one), (_, _, other) = heapq.heappop(heap), heapq.heappop(heap)
        joined = [(a + b, p + q) for (a, p), (b, q) in zip(one, reversed(other), strict=True)]
        joined.sort(key=lambda part: -part[0])
        heapq.heappush(heap, (joined[-1][0] - joined[0][0], tie, joined))
    return [places for _, places in heap[0][2]]


PACKERS: dict[str, Packer] = {
    "packing": packed,
    "first_fit": first_fit,
    "kk": karmarkar_karp,
    "kk_tight": karmarkar_karp_tight,
}


def quality(packing: Packing, lengths: Sequence[int], cost: SequenceCost) -> dict[str, float]:
    """What is good and bad about a packing. Ranks with fewer micro-batches than others do empty ones."""
    rounds = max(map(len, packing))
    tokens = [sum(lengths[p] for p in positions) for rank in packing for positions in rank if len(positions) > 1]
    costs = [
        [sum(cost(lengths[p]) for p in positions) for positions in rank] + [0] * (rounds - len(rank))
        for rank in packing
    ]
    per_rank = [sum(rank) for rank in costs]
    waited = sum(max(round_) for round_ in zip(*costs, strict=True))
    return {
        "fill": sum(lengths) / (RANKS * rounds * CAPACITY),
        "micro_batches": RANKS * rounds,
        "rank_imbalance": max(per_rank) / mean(per_rank) - 1,
        "micro_imbalance": max(map(max, costs)) / mean(c for rank in costs for c in rank) - 1,
        "idle": 1 - mean(per_rank) / waited,
        "overflow": max(0.0, max(tokens) / CAPACITY - 1),
    }


def seconds(run: Callable[[], object]) -> float:
    """Median wall time."""
    times = []
    for _ in range(REPETITIONS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return median(times)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--seeds", type=int, default=9)
    options = parser.parse_args()
    figures = measure(options.samples, options.seeds)
    print(f"{'':<16}" + "".join(f"{packer:>12}" for packer in PACKERS))
    for figure in ("fill", "micro_batches", "rank_imbalance", "micro_imbalance", "idle", "overflow"):
        print(f"{figure:<16}" + "".join(f"{figures[f'{packer}_{figure}']:12.5f}" for packer in PACKERS))
    print(json.dumps({name: round(value, 5) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
