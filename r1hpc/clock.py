"""When to commit and when to leave, by the clock of the allocation and by how long saves and iterations have taken.

Times are Unix seconds, so that they compare with the allocation's end, which Slurm gives so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

REMEMBERED = 20
"""Durations of one kind that count: old ones tell of other response lengths."""
PRIOR_COUNTS_BELOW = 3
"""With fewer measured durations than this the plan's estimate counts too, where it is longer."""
MARGIN_S = 10.0
"""Beyond what an iteration and its save take: noticing, leaving, Slurm's own rounding."""


@dataclass
class Durations:
    """The last durations of one kind, and the plan's estimate for as long as they are few."""

    prior_s: float = 0.0
    measured: list[float] = field(default_factory=list)
    """Seconds, the oldest first; at most REMEMBERED."""

    def add(self, seconds: float) -> None:
        """Remember one more; the oldest gives way."""
        self.measured = [*self.measured, float(seconds)][-REMEMBERED:]

    @property
    def p95_s(self) -> float:
        """What 95 % of them do not exceed, by nearest rank: the largest of fewer than 20."""
        known = sorted(self.measured)
        measured_s = known[math.ceil(0.95 * len(known)) - 1] if known else 0.0
        return max(measured_s, self.prior_s) if len(known) < PRIOR_COUNTS_BELOW else measured_s


@dataclass(frozen=True)
class SavePolicy:
    """How often to commit; what comes first counts."""

    iterations: int | None = None
    """ckpt.save_interval"""
    minutes: float | None = None
    """ckpt.save_minutes, or the plan's advice."""


class SaveClock:
    """Decides about the commits and the end of one attempt. Iterations are numbered from 0."""

    def __init__(
        self,
        policy: SavePolicy,
        first: int,
        end_time: float | None = None,
        stop_deadline: Callable[[], float | None] = lambda: None,
        *,
        save: Durations | None = None,
        iteration: Durations | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`first` is the iteration that the attempt begins with: all before it are committed.

        end_time: of the allocation; None where nothing ends it. stop_deadline: when whoever asked to stop will not wait
        any longer; None while nobody has asked. save, iteration: with the plan's estimates.
        """
        self._policy = policy
        self._end_time = end_time
        self._stop_deadline = stop_deadline
        self._save = save or Durations()
        self._iteration = iteration or Durations()
        self._update = Durations()
        self._now = now
        self._committed_iteration = first - 1
        self._committed_at = now()

    def remember(self, record: Mapping[str, Sequence[float]]) -> None:
        """Take over the durations that `state` gave an earlier attempt's commit."""
        for key, durations in self._durations.items():
            for seconds in record.get(key, ()):
                durations.add(seconds)

    def state(self) -> dict[str, Any]:
        """The measured durations, for the commit's record: the next attempt knows them from its beginning."""
        return {key: list(durations.measured) for key, durations in self._durations.items()}

    @property
    def _durations(self) -> Mapping[str, Durations]:
        return {"save_s": self._save, "iteration_s": self._iteration, "update_s": self._update}

    def iterated(self, seconds: float) -> None:
        """A whole iteration took this long: rollout, update, what a save cost it."""
        self._iteration.add(seconds)

    def updated(self, seconds: float) -> None:
        """An update took this long."""
        self._update.add(seconds)

    def saved(self, iteration: int, seconds: float, begun: float) -> None:
        """The commit after `iteration` is valid. It took so many seconds of work, which ended before anybody looked.

        begun: seconds since it was begun, in which a rollout went on beside it: the next interval began with it.
        """
        self._save.add(seconds)
        self._committed_iteration = max(self._committed_iteration, iteration)
        self._committed_at = self._now() - begun

    def is_due(self, iteration: int) -> bool:
        """Whether to commit now, after `iteration` was trained."""
        done = iteration - self._committed_iteration
        if done <= 0:
            return False
        by_count = self._policy.iterations is not None and done >= self._policy.iterations
        minutes = (self._now() - self._committed_at) / 60
        by_minutes = self._policy.minutes is not None and minutes >= self._policy.minutes
        return by_count or by_minutes or self.out_of_time() is not None

    def out_of_time(self) -> str | None:
        """Why no other iteration may start: it and its save would not end within the allocation. None if they would.

        Whoever leaves for this reason has committed before: `is_due` says so for the same reason.
        """
        if self._end_time is None:
            return None
        left_s = self._end_time - self._now()
        if left_s >= self._iteration.p95_s + self._save.p95_s + MARGIN_S:
            return None
        return (
            f"{max(left_s, 0.0):.0f} s of the allocation are left, an iteration and its save need "
            f"{self._iteration.p95_s:.0f} + {self._save.p95_s:.0f} s, leaving {MARGIN_S:.0f} s"
        )

    def seconds_left(self) -> float | None:
        """Until the attempt has to be gone: by the stop request, else by the allocation. None without any limit."""
        known = [at for at in (self._stop_deadline(), self._end_time) if at is not None]
        return max(0.0, min(known) - self._now()) if known else None

    def save_s(self, begun: float = 0.0) -> float:
        """How long a commit still takes that was begun `begun` seconds ago.

        With less time left, leave at once on the last commit: a save that is cut off brings nothing.
        """
        return max(self._save.p95_s - begun, 0.0)

    def no_time_for_update(self) -> str | None:
        """Why no update may be begun: it and its commit would not end before the attempt has to be gone.

        It would cost what was trained since the last commit, which can still be committed now. None if there is time.
        """
        left_s, needed_s = self.seconds_left(), self._update.p95_s + self._save.p95_s
        if left_s is None or left_s >= needed_s:
            return None
        return f"{left_s:.0f} s are left, an update and its commit need {needed_s:.0f} s"

    def patience_s(self) -> float:
        """How long an update under way may go on after a stop request, so that its commit ends in time as well."""
        left_s = self.seconds_left()
        return math.inf if left_s is None else max(0.0, left_s - self.save_s())
