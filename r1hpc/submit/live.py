"""Whether a run is live, in the queue or on a host: the one check before anything of its directory is written."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from r1hpc.cluster.slurm import QueuedJob, SlurmClient, outside_any_job, user_name
from r1hpc.errors import ClusterError, SubmitError
from r1hpc.rundir import RunDir
from r1hpc.submit import local
from r1hpc.submit.prepare import locked, read_json

_SHOWN = 20


@contextmanager
def claimed(directories: Sequence[RunDir], client: SlurmClient, own_job: str | None = None) -> Iterator[None]:
    """Keep every other submit of these runs out, once it is sure that nothing of them is live.

    own_job: the job that asks, and may write its own run's directory. Raises SubmitError.
    """
    with ExitStack() as stack:
        for directory in directories:
            _refuse_foreign(directory)
        for directory in directories:
            stack.enter_context(locked(directory))
        for directory in directories:
            refuse_live(directory, client, own_job)
        yield


def refuse_live(directory: RunDir, client: SlurmClient, own_job: str | None = None) -> None:
    """Raise SubmitError naming what is live of the run in the directory, or why nobody can tell."""
    run = read_json(directory.run)
    if not run:
        return  # nothing was ever prepared here, so nothing was started
    record = read_json(directory.jobs)
    if record.get("cluster") == "local":
        _refuse_local(directory, run["run_id"], record)
    try:
        queue = _queue(client)
    except ClusterError as error:
        _refuse_unknown(directory, run, record, own_job, error)
        return
    run_ids = {run["run_id"], run.get("sweep_of")} - {None}
    noted = _noted_jobs(record)
    _refuse_queued([job for job in queue if job.job_id != own_job and _is_of(job, run_ids, noted)], directory.root)


def _refuse_foreign(directory: RunDir) -> None:
    """Another user's jobs may be hidden from us (PrivateData), and two drivers would write one directory."""
    try:
        uid = directory.run.stat().st_uid
    except OSError:
        return  # nothing was prepared here, or whoever writes here says why it cannot be read
    if uid != os.getuid():
        owner = user_name(uid)
        raise SubmitError(
            f"the run in {directory.root} is {owner}'s ({directory.run.name} is owned by {owner}), whose jobs you may "
            f"not see: let {owner} submit it, or take another run.name or run.root; if it is to be yours, {owner} ends "
            f"its jobs, and an administrator hands it over: chown -R {user_name(os.getuid())} {directory.root}"
        )


def _queue(client: SlurmClient) -> list[QueuedJob]:
    if not client.present():
        raise ClusterError("sbatch is not on PATH here")
    with outside_any_job():
        return client.jobs_of(os.getuid())


def _is_of(job: QueuedJob, run_ids: set[str], noted: set[str]) -> bool:
    """By the comment, which also a submit that was killed has left; a job started by hand has none at its beginning.

    Job ids begin again on a new controller: a noted one that carries another run's mark is another job.
    """
    marks = {word.removeprefix("r1hpc=") for word in job.comment.split() if word.startswith("r1hpc=")}
    return bool(marks & run_ids) or (not marks and _whole(job.job_id) in noted)


def _noted_jobs(record: dict[str, Any]) -> set[str]:
    return {_whole(job["job_id"]) for job in record.get("jobs", [])}


def _whole(job_id: str) -> str:
    """The id without an array's task."""
    return job_id.partition("_")[0]


def _refuse_queued(jobs: Sequence[QueuedJob], directory: Path) -> None:
    if not jobs:
        return
    ids = sorted({_whole(job.job_id) for job in jobs})
    lines = [f"  {job.job_id:>12}  {job.state:<11} {job.name}" for job in jobs[:_SHOWN]]
    if len(jobs) > _SHOWN:
        lines.append(f"  and {len(jobs) - _SHOWN} more")
    text = [f"the run in {directory} is live already:", *lines]
    raise SubmitError("\n".join([*text, f"wait for it, or end it first: scancel {' '.join(ids)}"]))


def _refuse_unknown(
    directory: RunDir, run: dict[str, Any], record: dict[str, Any], own_job: str | None, error: ClusterError
) -> None:
    """Without an answer of Slurm's only a run that never went there is known not to be in its queue."""
    others = _noted_jobs(record) - ({_whole(own_job)} if own_job else set())
    only_we = own_job is not None and not others
    if record.get("cluster") == "slurm" and not only_we:
        jobs = f"its last jobs went to Slurm ({', '.join(sorted(others)) or 'a submit that did not end'})"
        fix = f"try again when it answers; if you know that none of them is left, remove {directory.jobs}"
    elif run.get("sweep_of"):
        jobs, fix = f"it is an element of the sweep of {run['sweep_of']}", "try again when Slurm answers"
    else:
        return
    raise SubmitError(f"cannot tell whether the run in {directory.root} is live: {jobs}, and {error}; {fix}") from error


def _refuse_local(directory: RunDir, run_id: str, record: dict[str, Any]) -> None:
    if local.exit_record(directory).is_file():
        return  # the verdict is published last
    host = record["host"]
    if host != socket.gethostname():
        raise SubmitError(
            f"cannot tell whether the run in {directory.root} is live: it was started on host {host}, pid "
            f"{record['pid']}, and has no verdict yet ({local.exit_record(directory)}); submit from {host}, or, if you "
            f"know that it is gone, remove {directory.jobs}"
        )
    pids = local.live_pids(run_id)
    if pids:
        text = " ".join(str(pid) for pid in pids)
        raise SubmitError(
            f"the run in {directory.root} is live already: pid {text}; wait for it, or end it: kill {text}"
        )
