"""How long the live attempt has shown no sign of itself, and whether that is longer than its phase may be silent."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from r1hpc.metrics.record import Line
from r1hpc.status.attempts import Attempt

_LEAST_S = 1800.0
_BRING_UP_S = 3600.0
"""Before an iteration has ended nobody knows how long one takes; loading, and the canary, take so long at the most."""
_ITERATIONS = 3
"""A phase is a part of an iteration: three of them without a sign are too many."""
_BRING_UP = frozenset(("starting", "loading", "canary"))


@dataclass(frozen=True)
class Silence:
    """Of the live attempt."""

    attempt: str
    seconds: float
    """Since its last sign: an iteration that ended, or what its driver said."""
    bound_s: float
    log: Path | None
    """Where it would say what it does; null while it has none."""

    @property
    def too_long(self) -> bool:
        """A person has to look."""
        return self.seconds > self.bound_s


def silence_of(attempt: Attempt, doing: object, lines: Sequence[Line], now: float) -> Silence:
    """doing: `what` of its progress.json, null while it has said nothing. lines: of all iterations.

    Iterations of 400 s, 900 s and 1000 s: 3 * 900 s = 45 min.
    """
    return Silence(
        attempt.name, max(now - attempt.last_sign, 0.0), _bound_s(doing, lines), next(iter(attempt.logs), None)
    )


def _bound_s(doing: object, lines: Sequence[Line]) -> float:
    taken = [line["seconds/iteration"] for line in lines if line.get("seconds/iteration") is not None]
    least = _BRING_UP_S if doing is None or doing in _BRING_UP or not taken else _LEAST_S
    return max(least, _ITERATIONS * statistics.median(taken)) if taken else least
