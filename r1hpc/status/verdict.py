"""How it stands with a run, why, and what to do: decided from its records and what is live of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from r1hpc.cluster.requeue.decision import EXIT, HOLD
from r1hpc.status.attempts import Attempt
from r1hpc.status.noted import Noted
from r1hpc.status.queue import Job, Queue

GOOD = frozenset(("done", "running", "waiting", "prepared"))
"""States in which nobody has to do anything for what was submitted to go on. The others: held, failed, cancelled,
lost (something that should have brought the run back did not)."""


@dataclass(frozen=True)
class Verdict:
    """The answer."""

    state: str
    why: str
    todo: str
    """What a person does next."""
    certain: bool = True
    """False where only files speak: Slurm was not heard."""


@dataclass(frozen=True)
class Evidence:
    """All that the verdict depends on."""

    noted: Noted
    attempts: tuple[Attempt, ...]
    """Since the last submit."""
    queue: Queue
    done: bool
    hold: dict[str, Any]
    """HOLD, {} where there is none."""
    local_exit: dict[str, Any]
    """logs/local.json: how the stages of a local run ended."""
    unfinished: tuple[str, ...]
    """Stages that were submitted and have no complete output; train among them until DONE is there."""


def judge(evidence: Evidence) -> Verdict:
    """The state of the run."""
    submit = f"python -m r1hpc.submit {evidence.noted.directory.config}"
    if evidence.done:
        return Verdict("done", "all iterations are done", f"python -m r1hpc.metrics {evidence.noted.directory.root}")
    if evidence.hold:
        why = f"HOLD: {evidence.hold.get('reason', 'no reason given')}"
        return Verdict("held", why, f"mend it, then {submit} (which removes HOLD)")
    if evidence.noted.cluster == "local":
        return _local(evidence, submit)
    if not evidence.noted.jobs and not evidence.attempts:
        if evidence.noted.sweep_of is not None:
            why = f"an element of the sweep of {evidence.noted.sweep_of}, whose jobs are not noted beside it"
            return Verdict("waiting", why, "look for that run's array: squeue --me", certain=False)
        return Verdict("prepared", "nothing was submitted yet", submit)
    if evidence.queue.silent is not None:
        return _by_files(evidence, submit, evidence.queue.silent)
    live = [job for job in evidence.queue.jobs.values() if job.live]
    return _live(evidence, live, submit) if live else _gone(evidence, submit)


def _live(evidence: Evidence, live: list[Job], submit: str) -> Verdict:
    """Some job is in the queue."""
    for job in live:
        if job.impossible is not None:
            failed = "".join(f"; {text}" for text in _failures(evidence))
            return Verdict(
                "failed", f"{_name(evidence, job)} will never run: {job.summary}{failed}", _again(job, submit)
            )
    for job in live:
        if job.held is not None and not any(other.runs for other in live):
            last = evidence.attempts[-1] if evidence.attempts else None
            why = last.reason if last is not None and last.action == HOLD else job.held
            return Verdict("held", f"{_name(evidence, job)}: {why}", f"mend it, then scontrol release {job.job_id}")
    running = [job for job in live if job.runs]
    if running:
        told = "; ".join(f"{_name(evidence, job)}: {job.summary}" for job in running)
        return Verdict("running", told, "nothing: wait")
    told = f"{_name(evidence, live[0])}: {live[0].summary}"
    if evidence.attempts:
        return Verdict("waiting", f"{_ended(evidence.attempts[-1])}; {told}", "nothing: it goes on when it has nodes")
    return Verdict("waiting", told, "nothing: it starts when it has nodes")


def _gone(evidence: Evidence, submit: str) -> Verdict:
    """Slurm answers, and has no job of the run in its queue."""
    if not evidence.unfinished:
        return Verdict("done", "all stages that were submitted are complete", submit)
    failures = list(_failures(evidence))
    if failures:
        state = "cancelled" if all(" CANCELLED" in text for text in failures) else "failed"
        return Verdict(state, "; ".join(failures), f"read its log; then {submit}")
    if not evidence.attempts:
        return Verdict("lost", "its jobs are gone and left no complete output", f"read the logs; then {submit}")
    return _by_attempt(evidence.attempts[-1], submit, in_queue=False)


def _by_files(evidence: Evidence, submit: str, silent: str) -> Verdict:
    """Nobody says what is in the queue."""
    if evidence.attempts:
        found = _by_attempt(evidence.attempts[-1], submit, in_queue=None)
    elif evidence.unfinished:
        found = Verdict("waiting", "submitted; the train job has not begun", "nothing, if its jobs are in the queue")
    else:
        found = Verdict("done", "all stages that were submitted are complete", submit)
    return Verdict(found.state, f"{found.why} (by its files: {silent})", found.todo, certain=False)


def _by_attempt(last: Attempt, submit: str, in_queue: bool | None) -> Verdict:
    """By the newest attempt. in_queue: whether Slurm has its job still; null where nobody knows."""
    if last.cause == "done":
        return Verdict("done", "all that was asked for is done", submit)
    if last.cause == "cancelled":
        return Verdict("cancelled", f"attempt {last.name} was cancelled", f"to go on: {submit}")
    comes_back = last.action != EXIT or last.cause in (None, "requeued_by_slurm", "abandoned")
    if not comes_back:
        return Verdict("failed", _ended(last), f"mend it; then {submit}")
    if in_queue is False:
        said = "its end was not recorded" if last.action is None else f"its record says {last.action}"
        return Verdict("lost", f"attempt {last.name}: {said}, and Slurm has not got job {last.job_id}", submit)
    if last.cause is None:
        return Verdict("running", f"attempt {last.name} has begun and not ended", "nothing: wait")
    if last.action == HOLD:
        return Verdict("held", _ended(last), f"mend it, then scontrol release {last.job_id}")
    return Verdict("waiting", _ended(last), "nothing: it goes on when it has nodes")


def _local(evidence: Evidence, submit: str) -> Verdict:
    """Stages in one process of a host."""
    if evidence.local_exit:
        if evidence.local_exit.get("exit_code") == 0:
            return Verdict("done", "all stages that were asked for are complete", submit)
        return Verdict("failed", str(evidence.local_exit.get("reason")), f"mend it; then {submit}")
    if evidence.queue.local_alive is None:
        return Verdict("running", f"no end recorded ({evidence.queue.silent})", "look on that host", certain=False)
    if evidence.queue.local_alive:
        return Verdict("running", f"on host {evidence.noted.host}, without Slurm", "nothing: wait")
    return Verdict("lost", "its process is gone and left no verdict: it was killed", submit)


def _failures(evidence: Evidence) -> Iterator[str]:
    for job in evidence.queue.jobs.values():
        if job.failed is not None and not job.live:
            yield f"{_name(evidence, job)}: {job.summary}"


def _name(evidence: Evidence, job: Job) -> str:
    stages = [noted.stage for noted in evidence.noted.jobs if noted.job_id == job.job_id]
    return f"{stages[0] if stages else 'train'} {job.job_id}"


def _ended(attempt: Attempt) -> str:
    told = [attempt.reason] if attempt.reason else []
    if attempt.said and attempt.said not in attempt.reason:
        told.append(attempt.said)
    return f"attempt {attempt.name} ended: {attempt.cause}" + (f" ({'; '.join(told)})" if told else "")


def _again(job: Job, submit: str) -> str:
    return f"scancel {job.job_id}, mend it, then {submit}"
