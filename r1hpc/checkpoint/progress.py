"""Progress of long work: bytes done, rate and time left, one line every few seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from r1hpc.plan.units import show_bytes, show_seconds


@dataclass
class Progress:
    """Says how far the work is; told the bytes done so far as often as one likes."""

    what: str
    """What the line begins with: `convert, task 2 of 4`."""
    total_bytes: int
    say: Callable[[str], None]
    every_s: float = 10.0
    clock: Callable[[], float] = time.monotonic
    _began: float = field(init=False)
    _next: float = field(init=False)

    def __post_init__(self) -> None:
        self._began = self.clock()
        # The first line early: it shows that the work goes on at all.
        self._next = self._began + min(2.0, self.every_s)

    def update(self, done_bytes: int) -> None:
        """Say it, if it is time."""
        now = self.clock()
        if now < self._next:
            return
        self._next = now + self.every_s
        rate = done_bytes / (now - self._began)
        left = f"{show_seconds((self.total_bytes - done_bytes) / rate)} left" if rate > 0 else "no estimate yet"
        self.say(
            f"{self.what}: {show_bytes(done_bytes)} of {show_bytes(self.total_bytes)}, {show_bytes(rate)}/s, {left}"
        )

    def finish(self) -> None:
        """The last line: how much in how long."""
        seconds = max(self.clock() - self._began, 1e-9)
        total = self.total_bytes
        self.say(f"{self.what}: {show_bytes(total)} in {show_seconds(seconds)}, {show_bytes(total / seconds)}/s")
