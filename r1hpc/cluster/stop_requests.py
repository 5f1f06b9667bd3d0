"""The stop requests that the head's agent has heard, and until when the driver may go on."""

from __future__ import annotations

from collections.abc import Iterable

from r1hpc.cluster.grace import MARGIN_S, Grace
from r1hpc.cluster.job_word import JobWord

_HURRY_S = 5.0
"""A driver that only waits for Ray, or has no grace left, has at most this long to leave."""


class StopRequests:
    """Requests as `SIGUSR1 at node03`, in the order heard; times are Unix seconds."""

    def __init__(self, grace: Grace) -> None:
        self._grace = grace
        self._heard: list[str] = []
        self._first = 0.0
        self.deadline: float | None = None
        """When the driver has to be gone; None while nobody has asked. Only ever earlier: Slurm signals every node, and
        they are heard of one after the other."""

    def add(self, request: str, now: float, *, at_work: bool) -> None:
        """Take one in. `at_work`: the driver has something that it may save."""
        self._first = self._first if self._heard else now
        self._heard.append(request)
        if at_work and not no_grace_left(self._heard):
            said = self._grace.deadline(request.partition(" at ")[0], now)
        else:
            said = now + min(_HURRY_S, self._grace.hurry_s)
        self.deadline = said if self.deadline is None else min(self.deadline, said)

    @property
    def is_doubtful(self) -> bool:
        """Whether a TERM was taken for a preemption with a grace time, which a scancel does not give."""
        return self._grace.grace_s > 0 and any(request.startswith("SIGTERM") for request in self._heard)

    def learn(self, word: JobWord) -> bool:
        """Take in what Slurm says of the job; whether less time is left by it."""
        said, before = [], self.deadline
        if word.preempted_at is not None:
            said.append(word.preempted_at + max(self._grace.grace_s - MARGIN_S, 0.0))
        if word.is_ending:
            said.append(self._first + self._grace.hurry_s)
        self.deadline = min([*said, *([] if before is None else [before])], default=None)
        return self.deadline != before

    def over(self, now: float) -> bool:
        """Whether the driver is to be left behind: Slurm's last TERM is due, and after it the kill."""
        return self.deadline is not None and now > self.deadline

    def __bool__(self) -> bool:
        return bool(self._heard)

    def __str__(self) -> str:
        return ", ".join(dict.fromkeys(self._heard))


def no_grace_left(stops: Iterable[str]) -> bool:
    """Whether some node got a TERM after an earlier request.

    Slurm signals all agents at once, so several nodes with one TERM each were asked only once.
    """
    asked: set[str] = set()
    for stop in stops:
        signal_name, _, node = stop.partition(" at ")
        if signal_name == "SIGTERM" and node in asked:
            return True
        asked.add(node)
    return False
