"""How it stands with a run, why, and what to do: decided from its records and what is live of it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from r1hpc.cluster.requeue.decision import EXIT, HOLD
from r1hpc.plan.units import show_seconds
from r1hpc.status.attempts import Attempt
from r1hpc.status.noted import Noted
from r1hpc.status.queue import Job, Queue
from r1hpc.status.silence import Silence

GOOD = frozenset(("done", "running", "waiting", "prepared"))
"""States in which nobody has to do anything for what was submitted to go on. The others: held, failed, cancelled,
lost (something that should have brought the run back did not)."""

_SLURM_JOB = re.compile(r"\d+(_\d+)?")


@dataclass(frozen=True)
class Verdict:
    """The answer."""

    state: str
    why: str
    todo: str
    """What a person does next."""
    commands: tuple[str, ...] = ()
    """Those in todo, in their order: to be copied, so they are shown whole."""
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
    silence: Silence | None = None
    """Of the newest attempt, where its end is not recorded."""


def judge(evidence: Evidence) -> Verdict:
    """The state of the run."""
    submit = evidence.noted.submit
    if evidence.done:
        curves = shlex.join(["python", "-m", "r1hpc.metrics", str(evidence.noted.directory.root)])
        return _verdict("done", "all iterations are done", "", curves)
    if evidence.hold:
        why = f"HOLD: {evidence.hold.get('reason', 'no reason given')}"
        return _verdict("held", why, "mend it, then ", submit, " (which removes HOLD)")
    if evidence.noted.cluster == "local":
        return _local(evidence, submit)
    if not evidence.noted.jobs and not evidence.attempts:
        if evidence.noted.sweep_of is not None:
            why = f"an element of the sweep of {evidence.noted.sweep_of}, whose jobs are not noted beside it"
            return replace(_verdict("waiting", why, "look for that run's array: ", "squeue --me"), certain=False)
        return _verdict("prepared", "nothing was submitted yet", "", submit)
    if evidence.queue.silent is not None:
        return _by_files(evidence, submit, evidence.queue.silent)
    live = [job for job in evidence.queue.jobs.values() if job.live]
    return _live(evidence, live, submit) if live else _gone(evidence, submit)


def _live(evidence: Evidence, live: list[Job], submit: str) -> Verdict:
    """Some job is in the queue."""
    for job in live:
        if job.impossible is not None:
            failed = "".join(f"; {text}" for text in _failures(evidence))
            why = f"{_name(evidence, job)} will never run: {job.summary}{failed}"
            return _verdict("failed", why, "", f"scancel {job.job_id}", ", mend it, then ", submit)
    for job in live:
        if job.held is not None and not any(other.runs for other in live):
            last = evidence.attempts[-1] if evidence.attempts else None
            why = last.reason if last is not None and last.action == HOLD else job.held
            return _verdict("held", f"{_name(evidence, job)}: {why}", "mend it, then ", _release(job.job_id))
    running = [job for job in live if job.runs]
    if running:
        told = "; ".join(f"{_name(evidence, job)}: {job.summary}" for job in running)
        is_newest = _newest_job(evidence) in [job.job_id for job in running]
        # What waits behind the job goes too: a chain's next one would begin, others would wait for ever.
        stop = f"scancel {' '.join(job.job_id for job in live)}"
        return _running(told, evidence.silence if is_newest else None, stop)
    told = f"{_name(evidence, live[0])}: {live[0].summary}"
    if evidence.attempts:
        return Verdict("waiting", f"{_ended(evidence.attempts[-1])}; {told}", "nothing: it goes on when it has nodes")
    return Verdict("waiting", told, "nothing: it starts when it has nodes")


def _gone(evidence: Evidence, submit: str) -> Verdict:
    """Slurm answers, and has no job of the run in its queue."""
    if not evidence.unfinished:
        return _verdict("done", "all stages that were submitted are complete", "", submit)
    failures = list(_failures(evidence))
    if failures:
        state = "cancelled" if all(" CANCELLED" in text for text in failures) else "failed"
        return _verdict(state, "; ".join(failures), "read its log; then ", submit)
    if not evidence.attempts:
        return _verdict("lost", "its jobs are gone and left no complete output", "read the logs; then ", submit)
    return _by_attempt(evidence.attempts[-1], evidence, in_queue=False)


def _by_files(evidence: Evidence, submit: str, silent: str) -> Verdict:
    """Nobody says what is in the queue."""
    if evidence.attempts:
        found = _by_attempt(evidence.attempts[-1], evidence, in_queue=None)
    elif evidence.unfinished:
        found = Verdict("waiting", "submitted; the train job has not begun", "nothing, if its jobs are in the queue")
    else:
        found = _verdict("done", "all stages that were submitted are complete", "", submit)
    return replace(found, why=f"{found.why} (by its files: {silent})", certain=False)


def _by_attempt(last: Attempt, evidence: Evidence, in_queue: bool | None) -> Verdict:
    """By the newest attempt. in_queue: whether Slurm has its job still; null where nobody knows."""
    submit = evidence.noted.submit
    if last.cause == "done":
        return _verdict("done", "all that was asked for is done", "", submit)
    if last.cause == "cancelled":
        return _verdict("cancelled", f"attempt {last.name} was cancelled", "to go on: ", submit)
    comes_back = last.action != EXIT or last.cause in (None, "requeued_by_slurm", "abandoned")
    if not comes_back:
        return _verdict("failed", _ended(last), "mend it; then ", submit)
    if in_queue is False:
        said = "its end was not recorded" if last.action is None else f"its record says {last.action}"
        return _verdict("lost", f"attempt {last.name}: {said}, and Slurm has not got job {last.job_id}", "", submit)
    if last.cause is None:
        stop = None
        if _SLURM_JOB.fullmatch(last.job_id):  # under mpirun there is none
            ids = [job.job_id for job in evidence.noted.jobs]
            stop = " ".join(["scancel", *(ids[ids.index(last.job_id) :] if last.job_id in ids else [last.job_id])])
        return _running(f"attempt {last.name} has begun and not ended", evidence.silence, stop)
    if last.action == HOLD:
        return _verdict("held", _ended(last), "mend it, then ", _release(last.job_id))
    return Verdict("waiting", _ended(last), "nothing: it goes on when it has nodes")


def _local(evidence: Evidence, submit: str) -> Verdict:
    """Stages in one process of a host."""
    if evidence.local_exit:
        if evidence.local_exit.get("exit_code") == 0:
            return _verdict("done", "all stages that were asked for are complete", "", submit)
        return _verdict("failed", str(evidence.local_exit.get("reason")), "mend it; then ", submit)
    if evidence.queue.local_alive is None:
        return Verdict("running", f"no end recorded ({evidence.queue.silent})", "look on that host", certain=False)
    if evidence.queue.local_alive:
        stop = None if evidence.noted.pid is None else f"kill {evidence.noted.pid}"
        return _running(f"on host {evidence.noted.host}, without Slurm", evidence.silence, stop)
    return _verdict("lost", "its process is gone and left no verdict: it was killed", "", submit)


def _running(why: str, silence: Silence | None, stop: str | None) -> Verdict:
    """stop: the command that ends it for good; null where there is none."""
    todo = "nothing: wait"
    if silence is not None and silence.too_long:
        why += f"; no sign of attempt {silence.attempt} for {show_seconds(silence.seconds)}"
        todo = "look at its nodes" if silence.log is None else f"look at {silence.log}"
    return _verdict("running", why, todo) if stop is None else _verdict("running", why, f"{todo}; to stop: ", stop)


def _verdict(state: str, why: str, *todo: str) -> Verdict:
    """todo: words and commands by turns, words first."""
    return Verdict(state, why, "".join(todo), todo[1::2])


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


def _newest_job(evidence: Evidence) -> str | None:
    return evidence.attempts[-1].job_id if evidence.attempts else None


def _release(job_id: str) -> str:
    return f"scontrol release {job_id}"
