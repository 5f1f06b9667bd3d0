"""GPU-hours: held by the job's attempts, useful, and lost to starting, to work done again, to work not finished.

    held   = useful + starting + again + unfinished + under_way
    lost   = starting + again + unfinished

An attempt holds all GPUs of its nodes from its begin to its end. With 8 GPUs, a start of 1 h, iterations of 1 h, and a
preemption half an hour into the third, when only the first was committed:
    attempt 0: 3.5 h = 28 held: starting 8, useful 8, again 8, unfinished 4
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from r1hpc.metrics.record import Line
from r1hpc.status.attempts import Attempt


@dataclass(frozen=True)
class GpuHours:
    """Of the run so far."""

    held: float
    """By all attempts; of the live one until now."""
    useful: float
    """Of the iterations that count: the lines of metrics.jsonl."""
    starting: float
    """From an attempt's begin to the begin of its first iteration; all of an attempt that ended before that."""
    again: float
    """Of iterations that were done again, since their commit was not complete."""
    unfinished: float
    """Of iterations that never ended, commits, and leaving."""
    under_way: float
    """Of the live attempt since its last iteration ended: it is not known yet what it will be."""

    @property
    def lost(self) -> float:
        """Neither useful nor under way."""
        return self.starting + self.again + self.unfinished


def gpu_hours(
    attempts: Sequence[Attempt],
    lines: Sequence[Line],
    dropped: Sequence[Line],
    gpus: Mapping[str, int],
    live: str | None,
    now: float,
) -> GpuHours:
    """dropped: lines of iterations done again. gpus: by name of the attempt. live: name of the attempt that runs."""
    held = starting = under_way = 0.0
    for attempt in attempts:
        own = [line for line in (*lines, *dropped) if line.get("attempt") == attempt.name]
        over = now if attempt.name == live else attempt.over or attempt.last_sign
        hours = gpus[attempt.name] / 3600
        held += hours * (over - attempt.started)
        begun = min((line["finished"] - _seconds(line) for line in own), default=None)
        if begun is not None:
            starting += hours * max(begun - attempt.started, 0.0)
        elif attempt.name != live:
            starting += hours * (over - attempt.started)
        if attempt.name == live:
            under_way = hours * (now - max((line["finished"] for line in own), default=attempt.started))
    useful, again = (sum(line.get("gpu_hours") or 0.0 for line in each) for each in (lines, dropped))
    rest = held - useful - again - starting - under_way
    return GpuHours(held, useful, starting, again, max(rest, 0.0), under_way)


def _seconds(line: Line) -> float:
    return float(line.get("seconds/iteration") or 0.0)
