"""Throughput of the reward pool, and what stuck answers cost the others.

    python -m benchmarks.rewards

The last line is JSON: `grades_per_s` of ordinary answers at full load; `pathological_delay_ms`, by how much the 99th
percentile of an ordinary answer's latency rises while answers that never end are being graded, at 200 answers a second.
"""

from __future__ import annotations

import asyncio
import json
import random
import time

import numpy

from r1hpc.rewards.pool import RewardPool
from r1hpc.rewards.request import RewardRequest

NUM_GRADES = 6_000
RATE_HZ = 200.0
NUM_TIMED = 600
_STUCK_EVERY_S = 0.25
_THINKING = "Let me see whether that is right. " * 300
_LABELS = ("5", "-12", r"\frac{1}{2}", "(1,2)", r"2\sqrt{3}", "x+1", "1,000", r"\pi", "0.25", r"\text{yes}")
_WRONG = ("7", "13", r"\frac{2}{3}", "(2,1)", r"3\sqrt{2}", "x-1", "999", "3", "0.3", "no")
_STUCK = r"</think>\boxed{(x+1)^9*(x+2)^9*(y+x+3)^9(x-y)^9(x+7y)^9(sqrt(x)+y)^9}"


def measure() -> dict[str, float]:
    """Both numbers, of a pool of two workers."""
    return asyncio.run(_measure())


async def _measure() -> dict[str, float]:
    requests = [_ordinary(random.Random(seed)) for seed in range(NUM_GRADES)]
    async with RewardPool(("deepscaler",), num_workers=2, timeout_s=2.0) as pool:
        await asyncio.gather(*map(pool.score, requests[:500]))
        begun = time.perf_counter()
        await asyncio.gather(*map(pool.score, requests))
        grades_per_s = NUM_GRADES / (time.perf_counter() - begun)
        alone_ms = await _latencies_ms(pool, requests)
        stuck = asyncio.create_task(_score_stuck_ones(pool))
        beside_ms = await _latencies_ms(pool, requests)
        stuck.cancel()
        await asyncio.gather(stuck, return_exceptions=True)
    delay_ms = float(numpy.percentile(beside_ms, 99) - numpy.percentile(alone_ms, 99))
    return {"grades_per_s": round(grades_per_s, 1), "pathological_delay_ms": round(max(delay_ms, 0.0), 2)}


def _ordinary(rng: random.Random) -> RewardRequest:
    """A response of 10,000 characters; one in three is right, the wrong ones differ from each other."""
    which = rng.randrange(len(_LABELS))
    answer = _LABELS[which] if rng.random() < 1 / 3 else _WRONG[rng.randrange(len(_WRONG))]
    return RewardRequest(f"{_THINKING}</think>So \\boxed{{{answer}}}.", _LABELS[which], "deepscaler")


async def _latencies_ms(pool: RewardPool, requests: list[RewardRequest]) -> list[float]:
    """Of answers that come one after the other at a steady rate, whether or not the ones before are done."""

    async def one(request: RewardRequest, due: float) -> float:
        await asyncio.sleep(due - time.perf_counter())
        await pool.score(request)
        return (time.perf_counter() - due) * 1e3

    begun = time.perf_counter()
    return await asyncio.gather(*[one(requests[n], begun + n / RATE_HZ) for n in range(NUM_TIMED)])


async def _score_stuck_ones(pool: RewardPool) -> None:
    """More of them than the patient lane has places for."""
    async with asyncio.TaskGroup() as tasks:
        while True:
            tasks.create_task(pool.score(RewardRequest(_STUCK, "x^9(y+1)", "deepscaler")))
            await asyncio.sleep(_STUCK_EVERY_S)


if __name__ == "__main__":
    print(json.dumps(measure()))
