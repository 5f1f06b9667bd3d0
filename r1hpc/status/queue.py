"""What Slurm says now of a run's jobs, in one question; and what lives of a run without Slurm."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from r1hpc.cluster.leftovers import processes_of
from r1hpc.cluster.slurm import JobElement, SlurmClient, outside_any_job, user_name
from r1hpc.errors import ClusterError

_HELD = re.compile(r"held|hold|SPECIAL_EXIT", re.IGNORECASE)
"""In a reason or a state: versions differ in where they name a hold."""
_IMPOSSIBLE = re.compile(r"BadConstraints|DependencyNeverSatisfied", re.IGNORECASE)
_ENDED = frozenset(
    ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
)
_WAITING = frozenset(
    ("PENDING", "PREEMPTED", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD", "SUSPENDED")
)
"""PREEMPTED is what Slurm shows until it has put the job back."""


@dataclass(frozen=True)
class Job:
    """A job of the run as Slurm shows it, over all its elements."""

    job_id: str
    """77, or 77_1 for one element of an array."""
    elements: tuple[JobElement, ...]

    @property
    def live(self) -> bool:
        """Some element runs, or may yet."""
        return any(element.state not in _ENDED for element in self.elements)

    @property
    def runs(self) -> bool:
        """Some element has nodes now."""
        return any(element.state not in _ENDED | _WAITING for element in self.elements)

    @property
    def held(self) -> str | None:
        """Why it waits for a person to release it; null: it does not."""
        return self._reason(_HELD)

    @property
    def impossible(self) -> str | None:
        """Why it will never run as it is; null: it may."""
        return self._reason(_IMPOSSIBLE)

    @property
    def failed(self) -> str | None:
        """The first final state that is no success."""
        return next((one.state for one in self.elements if one.state in _ENDED - {"COMPLETED"}), None)

    @property
    def summary(self) -> str:
        """PENDING (Priority), RUNNING on node[01-16], or 3 COMPLETED, 1 RUNNING for an array."""
        if len(self.elements) == 1:
            (one,) = self.elements
            reason = f" ({one.reason})" if one.reason not in ("None", "") and one.state in _WAITING else ""
            return one.state + reason + (f" on {one.nodes}" if one.nodes else "")
        states = [element.state for element in self.elements]
        return ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))

    def _reason(self, pattern: re.Pattern[str]) -> str | None:
        waiting = [element for element in self.elements if element.state not in _ENDED]
        found = (text for one in waiting for text in (one.reason, one.state) if pattern.search(text))
        return next(found, None)


@dataclass(frozen=True)
class Queue:
    """What can be known of what is live of a run."""

    jobs: Mapping[str, Job] = field(default_factory=dict)
    """By id, those of the run that Slurm remembers."""
    silent: str | None = None
    """Why Slurm was not heard; the files are all there is then."""
    local_alive: bool | None = None
    """Without Slurm: whether the stages' process lives; null where that is another host's matter."""


def ask(job_ids: Collection[str], owner: int, client: SlurmClient) -> Queue:
    """Ask Slurm for these jobs of a user (uid). It may hide those of others: not to be shown is no proof then."""
    if not client.present():
        return Queue(silent="no Slurm on this host")
    try:
        with outside_any_job():
            seen = client.elements_of(owner)
    except ClusterError as error:
        # Its last line says what it comes to; the first is the command.
        return Queue(silent=f"Slurm does not answer: {str(error).splitlines()[-1]}")
    queue = grouped(seen, job_ids)
    if not queue.jobs and owner != os.getuid():
        return Queue(silent=f"Slurm shows you none of its jobs, but they are {user_name(owner)}'s: it may hide them")
    return queue


def ask_here(run_id: str, host: str) -> Queue:
    """Look for the stages' process of a run without Slurm, which `host` started."""
    if host != socket.gethostname():
        return Queue(silent=f"it was started on host {host}: look there")
    return Queue(local_alive=any(process.node is None for process in processes_of(run_id)))


def grouped(seen: Collection[JobElement], job_ids: Collection[str]) -> Queue:
    """The elements of these jobs, job by job. `77` is the whole job, `77_1` one element of an array."""
    found: dict[str, list[JobElement]] = {}
    for element in seen:
        for name in (element.job_id, f"{element.job_id}_{element.index}"):
            if name in job_ids:
                found.setdefault(name, []).append(element)
    jobs = {name: Job(name, tuple(sorted(elements, key=lambda one: one.index))) for name, elements in found.items()}
    return Queue(jobs)
