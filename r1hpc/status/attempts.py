"""The attempts of the train job, as their directories tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from r1hpc.metrics.record import Line
from r1hpc.rundir import AttemptDir, RunDir
from r1hpc.status.files import existing, read_record

ABANDONED = "abandoned"
"""Cause of an attempt whose end nobody recorded; the next one closed its record when it began itself."""


@dataclass(frozen=True)
class Attempt:
    """One attempt."""

    name: str
    job_id: str
    restart: int
    started: float
    """Unix time."""
    ended: float | None
    """Unix time; null while its end is not recorded."""
    last_sign: float
    """Unix time of the last thing that it is known to have done."""
    nodes: tuple[str, ...]
    cause: str | None
    """Why it ended: preempted, walltime, node_lost, crash, done, ...; null while its end is not recorded."""
    action: str | None
    """What was decided then: requeue, hold or exit."""
    reason: str
    """The decision's reason, in words."""
    said: str
    """What the attempt itself said of its end."""
    blamed: tuple[str, ...]
    """Nodes that are named as the reason."""
    iterations: tuple[int, ...]
    """That it finished, also those that were done again later."""
    logs: tuple[Path, ...]
    """The driver's log first, then the directory of all."""

    @property
    def over(self) -> float | None:
        """When it stopped holding its nodes, as far as is known; null while it is not over."""
        return self.last_sign if self.cause == ABANDONED else self.ended


def read_attempts(run: RunDir, lines: Sequence[Line]) -> tuple[Attempt, ...]:
    """All of them, oldest first. lines: of every iteration that was ever recorded."""
    if not run.attempts.is_dir():
        return ()
    found = [_read(AttemptDir(path), lines) for path in run.attempts.iterdir() if (path / "begin.json").is_file()]
    return tuple(sorted((attempt for attempt in found if attempt is not None), key=lambda attempt: attempt.started))


def _read(attempt: AttemptDir, lines: Sequence[Line]) -> Attempt | None:
    begin, end, outcome = (read_record(path) for path in (attempt.begin, attempt.end, attempt.outcome))
    if not isinstance(begin.get("started"), int | float):
        return None
    own = [line for line in lines if line.get("attempt") == attempt.root.name]
    said = [read_record(path).get("now", 0.0) for path in (attempt.progress, attempt.canary.progress)]
    signs = [begin["started"], *said, *(line["finished"] for line in own)]
    nodes = tuple(str(node["name"]) for node in begin.get("nodes", []))
    return Attempt(
        name=attempt.root.name,
        job_id=str(begin.get("job_id", "")),
        restart=int(begin.get("restart", 0)),
        started=begin["started"],
        ended=end.get("ended"),
        last_sign=max(signs),
        nodes=nodes,
        cause=end.get("cause"),
        action=end.get("action"),
        reason=end.get("reason", ""),
        said=end.get("said") or outcome.get("reason", ""),
        blamed=tuple(end.get("blamed", ())),
        iterations=tuple(line["iteration"] for line in own),
        logs=existing(*sorted(attempt.logs.glob("*-driver.log")), attempt.logs),
    )
