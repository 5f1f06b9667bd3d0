"""How long a run still takes, by the iterations that it has done. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence

from r1hpc.metrics.record import Line

LOOKED_BACK = 10
"""Iterations whose mean counts: lengths grow as a policy learns, so old ones say little."""


def remaining_s(lines: Sequence[Line], num_rollout: int) -> float | None:
    """Seconds until the last iteration ends if nothing interrupts; null before the first.

    With iterations of 100 s and 140 s done, of 5 in all: 3 * 120 s = 360 s.
    """
    seconds: list[float] = [
        line["seconds/iteration"] for line in lines[-LOOKED_BACK:] if line.get("seconds/iteration") is not None
    ]
    if not seconds:
        return None
    left = max(num_rollout - 1 - int(lines[-1]["iteration"]), 0)
    return left * (sum(seconds) / len(seconds))
