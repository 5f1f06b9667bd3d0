"""--wait: what the jobs do, as it happens, until all of them have ended."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from r1hpc.cluster.slurm import JobElement, SlurmClient
from r1hpc.errors import ClusterError, SubmitError
from r1hpc.rundir import RunDir
from r1hpc.submit.evidence import end_state
from r1hpc.submit.pipeline import SubmittedJob
from r1hpc.submit.stages import TRAIN

_FIRST_POLL_S = 1.0
_LAST_POLL_S = 30.0
_SILENCE_S = 600.0
"""How long Slurm may not answer before waiting is given up."""

_SHOWN = 20
"""How many elements of an array an error names."""

VANISHED = "VANISHED"
"""Our own word for an element that Slurm has forgotten and that left nothing which says how it ended."""

_ENDED = frozenset(
    ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", VANISHED)
)
"""Slurm's final states, and VANISHED. PREEMPTED is none: the job comes back."""


_STUCK = re.compile(r"held|JobHold|BadConstraints|DependencyNeverSatisfied", re.IGNORECASE)


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
    """By index."""
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
    started, last_answer, next_poll = time.monotonic(), time.monotonic(), 0.0
    shown: dict[str, str] = {}
    views: dict[str, JobView] = {}
    tail = LogTail()
    while True:
        now = time.monotonic()
        if now >= next_poll:
            try:
                views = next_views(jobs, client.elements_of(os.getuid()), views, directory)
                last_answer = now
            except ClusterError as error:
                if now - last_answer > _SILENCE_S:
                    raise SubmitError(f"gave up waiting, the jobs go on: {error}") from error
            next_poll = now + poll_interval_s(now - started)
        for line in tail.new_lines(_logs(jobs, directory)):
            say(f"  | {line}")
        for job in jobs:
            summary = views[job.job_id].summary if job.job_id in views else "unknown"
            if shown.get(job.job_id) != summary:
                say(f"{_clock(now - started)} {job.stage} {job.job_id}: {summary}")
                shown[job.job_id] = summary
        if views and all(view.ended for view in views.values()):
            for line in tail.new_lines(_logs(jobs, directory)):
                say(f"  | {line}")
            return _verdict(jobs, views, directory)
        _refuse_stuck(jobs, views, directory)
        if deadline_s is not None and now - started > deadline_s:
            states = ", ".join(f"{job.stage} {job.job_id}: {shown[job.job_id]}" for job in jobs)
            raise SubmitError(f"not finished after {deadline_s:.0f} s, the jobs go on: {states}")
        time.sleep(0.5)


def poll_interval_s(elapsed_s: float) -> float:
    """A tenth of the time waited so far, from 1 s to 30 s: prompt for a short job, kind to slurmctld for a long one."""
    return min(max(elapsed_s / 10, _FIRST_POLL_S), _LAST_POLL_S)


def next_views(
    jobs: Sequence[SubmittedJob], seen: Sequence[JobElement], before: dict[str, JobView], directory: RunDir
) -> dict[str, JobView]:
    """The jobs by what Slurm shows now; of what it has forgotten, by what was seen last or is found on disk.

    Slurm forgets each element MinJobAge after its end, while others of the same array still run. A final state that
    is followed by another was a requeue: what Slurm shows now always counts.
    """
    now: dict[str, dict[int, JobElement]] = {}
    for element in seen:
        now.setdefault(element.job_id, {})[element.index] = element
    return {job.job_id: _view(job, now.get(job.job_id, {}), before.get(job.job_id), directory) for job in jobs}


def _view(job: SubmittedJob, seen: dict[int, JobElement], before: JobView | None, directory: RunDir) -> JobView:
    states = []
    for index in range(job.num_tasks):
        last = before.states[index] if before else VANISHED
        if index in seen:
            states.append(seen[index].state)
        elif last in _ENDED and last != VANISHED:
            states.append(last)
        else:
            states.append(end_state(job, index, directory) or VANISHED)
    reasons = [element.reason for element in seen.values()]
    return JobView(tuple(states), _detail(seen, states), next((text for text in reasons if _STUCK.search(text)), None))


def _detail(seen: dict[int, JobElement], states: Sequence[str]) -> str:
    """For a job that is no array: why it is where it is, and its nodes."""
    if 0 not in seen:
        return " (Slurm no longer knows the job, and it left no record of its end)" if states[0] == VANISHED else ""
    reason, nodes = seen[0].reason, seen[0].nodes
    return (f" ({reason})" if reason != "None" else "") + (f" on {nodes}" if nodes else "")


def _logs(jobs: Sequence[SubmittedJob], directory: RunDir) -> list[Path]:
    """The batch script's log and the head agent's; the other nodes' logs are beside them."""
    names = [f"{job.stage}-{job.job_id}{end}.log" for job in jobs for end in ("", "-0")]
    return [path for name in names if (path := directory.logs / name).is_file()]


def _verdict(jobs: Sequence[SubmittedJob], views: dict[str, JobView], directory: RunDir) -> None:
    # DONE counts more than states: in a chain some of its jobs may have been preempted.
    done = directory.done.exists()
    bad = [
        job for job in jobs if set(views[job.job_id].states) != {"COMPLETED"} and not (done and job.stage == TRAIN.name)
    ]
    if bad:
        lines = [
            f"{job.stage} {job.job_id}: {views[job.job_id].summary}{_which(job, views[job.job_id])}" for job in bad
        ]
        raise SubmitError("\n".join([*lines, f"logs: {directory.logs}"]))


def _which(job: SubmittedJob, view: JobView) -> str:
    """The array's elements that did not complete."""
    if job.num_tasks == 1:
        return ""
    bad = [str(index) for index, state in enumerate(view.states) if state != "COMPLETED"]
    more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    return f" (not completed: {job.job_id}_[{','.join(bad[:_SHOWN])}]{more})"


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
