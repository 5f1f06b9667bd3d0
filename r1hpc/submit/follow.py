"""--wait: what the jobs do, as it happens, until all of them have ended."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from r1hpc.cluster.slurm import SlurmClient
from r1hpc.errors import ClusterError, SubmitError
from r1hpc.rundir import RunDir
from r1hpc.submit.pipeline import SubmittedJob

_FIRST_POLL_S = 1.0
_LAST_POLL_S = 30.0
"""Slurm forgets a finished job after MinJobAge (300 s by default): poll well within it, and be kind to slurmctld."""
_SILENCE_S = 600.0
"""How long Slurm may not answer before waiting is given up."""

_ENDED = frozenset(
    ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "VANISHED")
)
"""Slurm's final states, and our own word for a job that Slurm has forgotten. PREEMPTED is none: the job comes back."""


_STUCK = re.compile(r"held|DependencyNeverSatisfied", re.IGNORECASE)


@dataclass
class LogTail:
    """New lines of growing files, complete lines only."""

    positions: dict[Path, int] = field(default_factory=dict)

    def new_lines(self, paths: Sequence[Path]) -> list[str]:
        """Lines that appeared since the last call."""
        lines = []
        for path in paths:
            start = self.positions.get(path, 0)
            with path.open("rb") as stream:
                stream.seek(start)
                data = stream.read()
            end = data.rfind(b"\n") + 1
            self.positions[path] = start + end
            lines += data[:end].decode(errors="replace").splitlines()
        return lines


@dataclass(frozen=True)
class JobView:
    """A job's state over all its elements."""

    states: tuple[str, ...]
    detail: str
    stuck: str | None = None
    """Why an element will never run without a person: held, or waiting for what cannot come."""

    @property
    def summary(self) -> str:
        """PENDING (Resources), or 3 COMPLETED, 1 RUNNING for an array."""
        counts = {state: self.states.count(state) for state in sorted(set(self.states))}
        if len(self.states) == 1:
            return f"{self.states[0]}{self.detail}"
        return ", ".join(f"{count} {state}" for state, count in counts.items())

    @property
    def ended(self) -> bool:
        """No element will run again."""
        return all(state in _ENDED for state in self.states)


def follow(
    jobs: Sequence[SubmittedJob],
    directory: RunDir,
    client: SlurmClient,
    say: Callable[[str], None],
    deadline_s: float | None = None,
) -> None:
    """Wait for the jobs, printing their states and their log lines as they come.

    Raises SubmitError when one fails, is held, or the deadline passes; the jobs themselves go on.
    """
    started, last_answer, poll_s, next_poll = time.monotonic(), time.monotonic(), _FIRST_POLL_S, 0.0
    shown: dict[str, str] = {}
    views: dict[str, JobView] = {}
    tail = LogTail()
    while True:
        now = time.monotonic()
        if now >= next_poll:
            try:
                views = {job.job_id: _view(client.array(job.job_id), views.get(job.job_id)) for job in jobs}
                last_answer = now
            except ClusterError as error:
                if now - last_answer > _SILENCE_S:
                    raise SubmitError(f"gave up waiting, the jobs go on: {error}") from error
            next_poll, poll_s = now + poll_s, min(poll_s * 1.1, _LAST_POLL_S)
        for line in tail.new_lines(_logs(jobs, directory)):
            say(f"  | {line}")
        for job in jobs:
            summary = views[job.job_id].summary if job.job_id in views else "unknown"
            if shown.get(job.job_id) != summary:
                say(f"{_clock(now - started)} {job.stage} {job.job_id}: {summary}")
                shown[job.job_id], poll_s = summary, _FIRST_POLL_S
        if views and all(view.ended for view in views.values()):
            for line in tail.new_lines(_logs(jobs, directory)):
                say(f"  | {line}")
            return _verdict(jobs, views, directory)
        _refuse_stuck(jobs, views, directory)
        if deadline_s is not None and now - started > deadline_s:
            states = ", ".join(f"{job.stage} {job.job_id}: {shown[job.job_id]}" for job in jobs)
            raise SubmitError(f"not finished after {deadline_s:.0f} s, the jobs go on: {states}")
        time.sleep(0.5)


def _view(records: list[dict[str, str]], before: JobView | None) -> JobView:
    if not records:
        # Forgotten by Slurm: what was seen last stands; a job that vanished while it ran is not called a success.
        return before if before and before.ended else JobView(("VANISHED",), " (Slurm no longer knows the job)")
    states = tuple(record.get("JobState", "UNKNOWN") for record in records)
    reason, nodes = records[0].get("Reason", "None"), records[0].get("NodeList", "(null)")
    detail = f" ({reason})" if reason != "None" else ""
    detail += f" on {nodes}" if nodes != "(null)" else ""
    reasons = [record.get("Reason", "None") for record in records]
    return JobView(states, detail, next((text for text in reasons if _STUCK.search(text)), None))


def _logs(jobs: Sequence[SubmittedJob], directory: RunDir) -> list[Path]:
    """The batch script's log and the head agent's; the other nodes' logs are beside them."""
    names = [f"{job.stage}-{job.job_id}{end}.log" for job in jobs for end in ("", "-0")]
    return [path for name in names if (path := directory.logs / name).is_file()]


def _verdict(jobs: Sequence[SubmittedJob], views: dict[str, JobView], directory: RunDir) -> None:
    if directory.done.exists():
        return  # in a chain, also when some of its jobs were preempted
    bad = [job for job in jobs if set(views[job.job_id].states) != {"COMPLETED"}]
    if bad:
        lines = [f"{job.stage} {job.job_id}: {views[job.job_id].summary}" for job in bad]
        raise SubmitError("\n".join([*lines, f"logs: {directory.logs}"]))


def _refuse_stuck(jobs: Sequence[SubmittedJob], views: dict[str, JobView], directory: RunDir) -> None:
    for job in jobs:
        view = views.get(job.job_id)
        if view and view.stuck:
            raise SubmitError(
                f"{job.stage} {job.job_id}: {view.summary}: {view.stuck}; why, the logs in {directory.logs} say; "
                f"after mending it: scontrol release {job.job_id}"
            )


def _clock(seconds: float) -> str:
    return f"[{int(seconds) // 60:02d}:{int(seconds) % 60:02d}]"
