"""Submitting the stages as one chain: all of them are in the queue, or none."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import SlurmExecutor

from r1hpc.cluster.slurm import SlurmClient, outside_any_job
from r1hpc.errors import ClusterError, SubmitError
from r1hpc.publish import publish_json, publish_text
from r1hpc.rundir import RunDir
from r1hpc.submit.requests import StageJob


@dataclass(frozen=True)
class SubmittedJob:
    """A job in the queue."""

    stage: str
    job_id: str
    num_tasks: int
    submitted: float


def submit_chain(
    jobs: Sequence[StageJob], directory: RunDir, client: SlurmClient, chain_length: int = 0
) -> list[SubmittedJob]:
    """Submit the jobs, each after the success of the one before; `chain_length` follow-ups of the last one.

    Every text is validated by `sbatch --test-only` before the first is submitted; when one is refused all the same,
    those before it are cancelled. Raises SubmitError.
    """
    submitted: list[SubmittedJob] = []
    with outside_any_job():
        _test(jobs, directory, client)
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
        except BaseException:
            client.cancel([job.job_id for job in submitted])
            record(directory, [])
            raise
    return submitted


def record(directory: RunDir, submitted: Sequence[SubmittedJob]) -> None:
    """Publish jobs.json."""
    publish_json(directory.jobs, {"cluster": "slurm", "jobs": [asdict(job) for job in submitted]})


def read_record(directory: RunDir) -> list[SubmittedJob]:
    """The jobs of the last submit; [] before the first."""
    try:
        jobs = json.loads(directory.jobs.read_text(encoding="utf-8"))["jobs"]
    except FileNotFoundError:
        return []
    return [SubmittedJob(**job) for job in jobs]


def _test(jobs: Sequence[StageJob], directory: RunDir, client: SlurmClient) -> None:
    problems = []
    for job in jobs:
        path = _write_text(job, None, directory)
        try:
            client.test_only(str(path))
        except ClusterError as error:
            problems.append(f"stage {job.stage.name} is refused by Slurm, nothing was submitted: {error} ({path})")
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
    return SubmittedJob(job.stage.name, first.job_id.partition("_")[0], len(tasks), time.time())


def _write_text(job: StageJob, dependency: str | None, directory: RunDir) -> Path:
    path = directory.sbatch / f"{job.stage.name}.sh"
    publish_text(path, job.text(dependency))
    return path
