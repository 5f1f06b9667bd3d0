"""How a job ended that Slurm has forgotten, from what it left in the run directory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from submitit.core.utils import JobPaths, pickle_load

from r1hpc.cluster.requeue import EXIT
from r1hpc.rundir import AttemptDir, RunDir
from r1hpc.submit.pipeline import SubmittedJob
from r1hpc.submit.stages import TRAIN, TRIALS

_CLOCK_SKEW_S = 60.0
"""Between the host that submitted and the one that wrote the record; ids start again at 1 on a new Slurm."""


def end_state(job: SubmittedJob, index: int, directory: RunDir) -> str | None:
    """COMPLETED or FAILED, as the element left it on disk; None when it left nothing that says so."""
    name = f"{job.job_id}_{index}" if job.num_tasks > 1 else job.job_id
    if job.stage in (TRAIN.name, *(trial.name for trial in TRIALS)):
        return _of_attempts(name, job.submitted, directory)
    return _of_result(Path(job.folder), name) if job.folder else None


def _of_attempts(name: str, submitted: float, directory: RunDir) -> str | None:
    """The newest attempt's end.json; without one the attempt was cut off."""
    attempts = {}
    for run in _run_directories(directory):
        for path in run.attempts.glob(f"{name}-r*"):
            if match := re.fullmatch(r".*-r(\d+)", path.name):
                attempts[int(match[1])] = AttemptDir(path)
    if not attempts:
        return None
    try:
        record = json.loads(attempts[max(attempts)].end.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    cut_off = not record.get("carried_out", True)
    goes_on = record["cause"] == "requeued_by_slurm" or (record["action"] != EXIT and not cut_off)
    if record["ended"] < submitted - _CLOCK_SKEW_S or goes_on:
        return None
    return "COMPLETED" if record["exit_code"] == 0 else "FAILED"


def _run_directories(directory: RunDir) -> Iterator[RunDir]:
    """The run's own, and those of its sweep."""
    yield directory
    try:
        lines = directory.sweep_index.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    yield from (RunDir(Path(line)) for line in lines)


def _of_result(folder: Path, name: str) -> str | None:
    """submitit's result, ("success", value) or ("error", traceback)."""
    try:
        outcome, _ = pickle_load(JobPaths(folder, name, 0).result_pickle)
    except FileNotFoundError:
        return None
    return "COMPLETED" if outcome == "success" else "FAILED"
