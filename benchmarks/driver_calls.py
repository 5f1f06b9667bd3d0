"""What it costs a driver to ask every rank of a large run something, through Ray; on a CPU.

    python -m benchmarks.driver_calls [--ranks 128] [--actors 8]

As many calls as a run has ranks, spread over a few real actors of this host, each answered with as many bytes as the
ticket of a payload has, through what the driver uses for it. Of interest is the driver's own CPU time: the actors of a
run are on other hosts. Medians of 30.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import ray
from ray.actor import ActorHandle

from r1hpc.actors.collective_call import answers
from r1hpc.actors.place import Place

TICKET_BYTES = 7_000
REPETITIONS = 30
DEADLINE_S = 60.0


@ray.remote(num_cpus=0)
class Rank:
    """Answers at once."""

    def offer(self, bucket: int) -> str:
        """As long as an order of 40 tensors."""
        return "x" * TICKET_BYTES


def main() -> int:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=128)
    parser.add_argument("--actors", type=int, default=8)
    options = parser.parse_args()
    ray.init(
        num_cpus=2, include_dashboard=False, _node_ip_address="127.0.0.1", logging_level="ERROR", log_to_driver=False
    )
    try:
        actors = [Rank.remote() for _ in range(options.actors)]  # type: ignore[attr-defined]
        wall_s, cpu_s = asyncio.run(measure(actors, options.ranks))
    finally:
        ray.shutdown()
    print(f"{options.ranks} calls and answers: {1e3 * cpu_s:.1f} ms of the driver's CPU, {1e3 * wall_s:.1f} ms in all")
    print(json.dumps({"ranks": options.ranks, "cpu_s": round(cpu_s, 5), "wall_s": round(wall_s, 5)}))
    return 0


async def measure(actors: Sequence[ActorHandle], ranks: int) -> tuple[float, float]:
    """Seconds of the clock and of the driver's CPU."""
    place = Place(0, "here", 0, 1, Path("none"))
    times = []
    for number in range(REPETITIONS + 3):
        began, cpu = time.perf_counter(), time.process_time()
        calls = [(place, actors[rank % len(actors)].offer.remote(number)) for rank in range(ranks)]
        assert len(await answers("offer", calls, DEADLINE_S)) == ranks
        times.append((time.perf_counter() - began, time.process_time() - cpu))
    wall, own = zip(*times[3:], strict=True)
    return statistics.median(wall), statistics.median(own)


if __name__ == "__main__":
    raise SystemExit(main())
