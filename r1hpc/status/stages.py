"""The stages of a run in their order, each with its state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from r1hpc.status.attempts import Attempt
from r1hpc.status.noted import Noted
from r1hpc.status.queue import Job, Queue
from r1hpc.submit.stages import CAST, CONVERT, TRAIN, TRIALS, Stage


@dataclass(frozen=True)
class StageState:
    """One stage."""

    name: str
    state: str
    """complete, not needed, not submitted, waiting, running, held, failed, submitted (Slurm is silent), gone."""
    detail: str
    """Where the complete output is, or what Slurm says."""
    job_id: str | None
    """Of the last job that was submitted for it."""
    logs: tuple[Path, ...]
    """Of that job."""


def stage_states(noted: Noted, queue: Queue, attempts: Sequence[Attempt], done: bool) -> tuple[StageState, ...]:
    """cast, convert, preflight and canary where they were submitted by themselves, train."""
    asked = {job.stage for job in noted.jobs}
    stages = [stage for stage in (CAST, CONVERT, *TRIALS, TRAIN) if stage not in TRIALS or stage.name in asked]
    return tuple(_state(stage, noted, queue, attempts, done) for stage in stages)


def unfinished(stages: Sequence[StageState], noted: Noted) -> tuple[str, ...]:
    """Those that were submitted, or began by hand, and are not complete."""
    asked = {job.stage for job in noted.jobs} or {TRAIN.name}
    return tuple(
        stage.name for stage in stages if stage.name in asked and stage.state not in ("complete", "not needed")
    )


def _state(stage: Stage, noted: Noted, queue: Queue, attempts: Sequence[Attempt], done: bool) -> StageState:
    job_id = _newest_job(stage, noted, queue, attempts)
    logs = _logs(stage, noted, job_id)
    output = None if noted.config is None else stage.output(noted.config)
    if _complete(stage, noted, attempts, done):
        needless = stage in (CAST, CONVERT) and output is None
        return StageState(stage.name, "not needed" if needless else "complete", output or "", job_id, logs)
    if job_id is None:
        return StageState(stage.name, "not submitted", "", None, logs)
    job = queue.jobs.get(job_id)
    return StageState(stage.name, _of_job(job, queue), job.summary if job is not None else "", job_id or None, logs)


def _complete(stage: Stage, noted: Noted, attempts: Sequence[Attempt], done: bool) -> bool:
    if stage is TRAIN:
        return done
    if stage in TRIALS:
        ids = {job.job_id for job in noted.jobs if job.stage == stage.name}
        own = [attempt for attempt in attempts if attempt.job_id in ids or noted.cluster == "local"]
        return bool(own) and own[-1].cause == "done"
    return noted.config is not None and stage.is_complete(noted.config)


def _of_job(job: Job | None, queue: Queue) -> str:
    if job is None:
        return "submitted" if queue.silent or queue.local_alive is not None else "gone"
    if not job.live:
        return "failed" if job.failed else "gone"
    if job.impossible:
        return "failed"
    return "running" if job.runs else "held" if job.held else "waiting"


def _newest_job(stage: Stage, noted: Noted, queue: Queue, attempts: Sequence[Attempt]) -> str | None:
    """In a chain the live one. "" stands for a stage of a local run, which has no job."""
    ids = [job.job_id for job in noted.jobs if job.stage == stage.name]
    if not ids and stage is TRAIN and not {job.stage for job in noted.jobs} & {trial.name for trial in TRIALS}:
        ids = [attempt.job_id for attempt in attempts[-1:]]
    running = [job_id for job_id in ids if (job := queue.jobs.get(job_id)) is not None and job.runs]
    began = [attempt.job_id for attempt in attempts if attempt.job_id in ids]
    return next(iter([*running[-1:], *began[-1:], *ids[-1:]]), None)


def _logs(stage: Stage, noted: Noted, job_id: str | None) -> tuple[Path, ...]:
    folder = noted.directory.logs
    if job_id is None or not folder.is_dir():
        return ()
    if noted.cluster == "local":
        return tuple(folder.glob("local.log"))
    found = folder.glob(f"{stage.name}-{job_id}*.log")
    # The batch script's first, which has the shortest name, then the head agent's.
    return tuple(sorted(found, key=lambda path: (len(path.name), path.name)))
