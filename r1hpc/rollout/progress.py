"""How far a rollout is, while it runs: what the callback gets, and lines of it for people."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from r1hpc.plan.units import show_seconds


@dataclass(frozen=True)
class RolloutProgress:
    """A rollout at one moment."""

    rollout_id: int
    target: int
    """Groups wanted."""
    kept: int
    rejected: int
    failed: int
    running: int
    """Groups in flight."""
    waves: int
    running_samples: int
    generated_tokens: int
    """Of responses that have ended."""
    longest_s: float
    """Age of the oldest sample that is being generated."""
    longest_group: int | None
    """Its group; null when nothing is being generated."""
    seconds: float

    @property
    def tokens_per_s(self) -> float:
        """Mean since the start; responses count when they end."""
        return self.generated_tokens / max(self.seconds, 1e-9)

    @property
    def eta_s(self) -> float | None:
        """Seconds left if groups go on being kept at the mean rate so far; null before the first."""
        return self.seconds * (self.target - self.kept) / self.kept if self.kept else None

    def line(self) -> str:
        """rollout 7: 96 of 128 groups kept, 61 rejected, 99 running (wave 1), 41,200 tokens/s, ..., 2.4 min left."""
        left = "no estimate yet" if self.eta_s is None else f"{show_seconds(self.eta_s)} left"
        failed = f", {self.failed} failed" if self.failed else ""
        longest = ""
        if self.longest_group is not None:
            oldest = f"{show_seconds(self.longest_s)} (group {self.longest_group})"
            longest = f"longest of {self.running_samples} samples {oldest}, "
        return (
            f"rollout {self.rollout_id}: {self.kept} of {self.target} groups kept, {self.rejected} rejected{failed},"
            f" {self.running} running (wave {self.waves}), {self.tokens_per_s:,.0f} tokens/s, {longest}{left}"
        )


ProgressCallback = Callable[[RolloutProgress], None]


@dataclass
class ProgressLines:
    """A callback that says a line every few seconds, for logs."""

    say: Callable[[str], None]
    every_s: float = 15.0
    clock: Callable[[], float] = time.monotonic
    _next: float = field(init=False, default=float("-inf"))

    def __call__(self, progress: RolloutProgress) -> None:
        """Say it, if it is time."""
        now = self.clock()
        if now >= self._next:
            self._next = now + self.every_s
            self.say(progress.line())
