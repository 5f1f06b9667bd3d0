"""Submitting the stages as one chain: all of them are in the queue, or none."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from r1hpc.cluster.slurm import PROFILE_OPTIONS, SlurmClient, outside_any_job, profile_variable
from r1hpc.errors import ClusterError, SubmitError
from r1hpc.publish import publish_json, publish_text
from r1hpc.rundir import RunDir
from r1hpc.submit.requests import StageJob
from r1hpc.submit.trial import refusal

_LATE_JOB_S = 10.0
"""How long after sbatch gave up its job may still come into the queue."""


@dataclass(frozen=True)
class SubmittedJob:
    """A job in the queue."""

    stage: str
    job_id: str
    num_tasks: int
    submitted: float
    folder: str = ""
    """submitit's pickles and results; empty for a job that submitit did not submit."""


def submit_chain(
    jobs: Sequence[StageJob],
    directory: RunDir,
    client: SlurmClient,
    chain_length: int = 0,
    *,
    run_id: str,
    say: Callable[[str], None] = lambda line: None,
) -> list[SubmittedJob]:
    """Submit the jobs, each after the success of the one before; `chain_length` follow-ups of the last one.

    Every text is validated by `sbatch --test-only` before the first is submitted; when one is refused all the same,
    whatever of this run has come into the queue since is cancelled. Raises SubmitError.
    """
    submitted: list[SubmittedJob] = []
    with outside_any_job(settled=_settled(jobs)):
        _say_profile(say)
        _test(jobs, directory, client, say)
        before = _in_queue(client, run_id)
        try:
            for job in jobs:
                previous = f"afterok:{submitted[-1].job_id}" if submitted else None
                submitted.append(_submit(job, previous, directory))
                record(directory, submitted)
            for _ in range(chain_length):
                # One job of a name at a time; each finds DONE, or goes on from the last commit.
                first = f"afterok:{submitted[len(jobs) - 2].job_id}," if len(jobs) > 1 else ""
                submitted.append(_submit(jobs[-1], f"{first}singleton", directory))
                record(directory, submitted)
        except BaseException as error:
            _take_back(submitted, before, run_id, client, error)
            record(directory, [])
            raise
    return submitted


def record(directory: RunDir, submitted: Sequence[SubmittedJob]) -> None:
    """Publish jobs.json."""
    publish_json(directory.jobs, {"cluster": "slurm", "jobs": [asdict(job) for job in submitted]})


def _settled(jobs: Sequence[StageJob]) -> set[str]:
    """The sbatch options that some job's text names: the user's profile must not overrule them."""
    options = [job.parameters | job.parameters.get("additional_parameters", {}) for job in jobs]
    return {name for parameters in options for name, value in parameters.items() if value is not None}


def _say_profile(say: Callable[[str], None]) -> None:
    for name in map(profile_variable, PROFILE_OPTIONS):
        if name in os.environ:
            say(f"note: {name}={os.environ[name]} of your environment applies: the configuration leaves it open")


def _test(jobs: Sequence[StageJob], directory: RunDir, client: SlurmClient, say: Callable[[str], None]) -> None:
    problems = []
    for job in jobs:
        path = _write_text(job, None, directory)
        problem = refusal(job, path, client, say)
        if problem is not None:
            problems.append(f"stage {job.stage.name} is refused by Slurm, nothing was submitted: {problem} ({path})")
    if problems:
        raise SubmitError("\n".join(problems))


def _submit(job: StageJob, dependency: str | None, directory: RunDir) -> SubmittedJob:
    _write_text(job, dependency, directory)
    executor = SlurmExecutor(folder=job.folder, python=job.python)
    executor.update_parameters(**job.parameters | ({"dependency": dependency} if dependency else {}))
    tasks = [job.stage.load_job()(*arguments) for arguments in job.arguments]
    try:
        if job.is_array:
            first = executor.submit_array(tasks)[0]
        else:
            first = executor.submit(tasks[0])
    except (FailedJobError, FailedSubmissionError, subprocess.SubprocessError) as error:
        raise SubmitError(f"stage {job.stage.name}: sbatch failed: {error}") from error
    return SubmittedJob(job.stage.name, first.job_id.partition("_")[0], len(tasks), time.time(), str(job.folder))


def _in_queue(client: SlurmClient, run_id: str) -> set[str]:
    """The ids of this run's jobs, found by their comment."""
    return {
        job.job_id.partition("_")[0] for job in client.jobs_of(os.getuid()) if f"r1hpc={run_id}" in job.comment.split()
    }


def _take_back(
    submitted: Sequence[SubmittedJob], before: set[str], run_id: str, client: SlurmClient, error: BaseException
) -> None:
    """Cancel what of this run is in the queue and was not there before.

    An sbatch that fails may have queued its job all the same, a slow slurmctld even after sbatch gave up: then it is
    looked for a little longer. Raises SubmitError naming the jobs when Slurm does not answer.
    """
    known = {job.job_id for job in submitted}
    deadline = time.monotonic() + (_LATE_JOB_S if "timed out" in str(error) else 0.0)
    try:
        while not (late := _in_queue(client, run_id) - before - known) and time.monotonic() < deadline:
            time.sleep(1.0)
        client.cancel(sorted(known | late))
    except ClusterError as silence:
        ids = " ".join(sorted(known)) or "none that is known of"
        raise SubmitError(
            f"{error}\nand Slurm does not answer, so its jobs may be in the queue ({ids}): look for r1hpc-{run_id} in "
            f"squeue --me and scancel them ({silence})"
        ) from error


def _write_text(job: StageJob, dependency: str | None, directory: RunDir) -> Path:
    path = directory.sbatch / f"{job.stage.name}.sh"
    publish_text(path, job.text(dependency))
    return path
