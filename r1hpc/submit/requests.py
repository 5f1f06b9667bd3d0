"""From a configuration and a list of stages to the jobs to be submitted: options, code, number of tasks."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from r1hpc.config import Config
from r1hpc.rundir import RunDir
from r1hpc.submit.executor import sbatch_text
from r1hpc.submit.parameters import JobRequest, array_parameters, python, train_parameters
from r1hpc.submit.stages import Stage

_DEAF = """sh -c 'trap "" USR1 TERM; exec "$@"' task"""
"""An array's element ignores what asks it to stop: killed, it would count as failed where it is to be requeued."""
_DEAF_AT_FIRST = 'sh -c "$r1hpc_signals_later" task'
"""An agent has its handlers half a second after its start. Killed by a signal before that, its node would be blamed.
The variable is of sbatch/hooks.sh."""


@dataclass(frozen=True)
class StageJob:
    """One sbatch call."""

    stage: Stage
    parameters: dict[str, Any]
    arguments: tuple[tuple[Any, ...], ...]
    """Arguments of the job's class, one tuple an array task."""
    folder: Path
    """submitit's pickles and results of this one submission."""
    python: str
    is_array: bool

    def text(self, dependency: str | None = None) -> str:
        """The sbatch text, with a dependency on the stages before it."""
        parameters = self.parameters | ({"dependency": dependency} if dependency else {})
        return sbatch_text(self.folder, self.python, parameters, len(self.arguments) if self.is_array else None)


@dataclass(frozen=True)
class Submission:
    """What all jobs of one submit share."""

    config: Config
    run_id: str
    directory: RunDir
    stamp: str
    """Names this submit in RUN/submitit: job ids start again at 1 on a new cluster, old pickles must not be met."""
    signal_lead_s: int
    restart: str
    hosts: Sequence[str] = ()

    def job(self, stage: Stage) -> StageJob:
        """The job of one stage."""
        request = JobRequest(
            stage=stage.name,
            run_id=self.run_id,
            run_dir=shlex.quote(str(self.directory.root)),
            logs=str(self.directory.logs),
            signal_lead_s=self.signal_lead_s,
            requeue=self.restart == "requeue",
            hosts=self.hosts,
        )
        root = str(self.directory.root)
        if stage.name in ("cast", "convert"):
            section = self.config.cast if stage.name == "cast" else self.config.convert
            # Array elements restart one by one whatever the train job does: each is idempotent.
            parameters = array_parameters(self.config, replace(request, requeue=True))
            return self._stage_job(stage, parameters, [(root, index) for index in range(section.num_tasks)])
        return self._stage_job(stage, train_parameters(self.config, request), [(root, stage.until)])

    def sweep_job(self, stage: Stage, directories: Sequence[RunDir], index_file: Path) -> StageJob:
        """One array whose elements are whole train jobs, each with its own run directory."""
        pick = f"$(sed -n $((${{SLURM_ARRAY_TASK_ID:-0}} + 1))p {shlex.quote(str(index_file))})"
        request = JobRequest(
            stage=stage.name,
            run_id=self.run_id,
            run_dir=f'"{pick}"',
            logs=str(self.directory.logs),
            signal_lead_s=self.signal_lead_s,
            requeue=self.restart == "requeue",
            hosts=self.hosts,
        )
        parameters = train_parameters(self.config, request, is_array=True) | {"array_parallelism": len(directories)}
        return self._stage_job(stage, parameters, [(str(directory.root), stage.until) for directory in directories])

    def _stage_job(self, stage: Stage, parameters: dict[str, Any], arguments: list[tuple[Any, ...]]) -> StageJob:
        folder = self.directory.submitit / stage.name / self.stamp
        prefix = _DEAF if stage.name in ("cast", "convert") else _DEAF_AT_FIRST
        command = f"{prefix} {shlex.quote(python(self.config))}"
        is_array = "array_parallelism" in parameters and len(arguments) > 1
        return StageJob(stage, parameters, tuple(arguments), folder, command, is_array)
