"""What submit and the stages have noted of a run: its identity, its jobs, its configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1hpc.config import Config, load_config
from r1hpc.errors import R1hpcError
from r1hpc.rundir import RunDir
from r1hpc.status.attempts import Attempt
from r1hpc.status.files import read_record

_CLOCK_SKEW_S = 60.0
"""Between the host that submitted and the one that wrote an attempt's record."""


class NoRun(R1hpcError):
    """A directory that is no run's."""


@dataclass(frozen=True)
class NotedJob:
    """A line of jobs.json."""

    stage: str
    job_id: str


@dataclass(frozen=True)
class Noted:
    """A run as it was submitted."""

    directory: RunDir
    run_id: str
    name: str
    submitted: float
    """Unix time of the last submit."""
    cluster: str | None
    """slurm or local; null before any submit."""
    host: str
    """That started the stages of a local run."""
    jobs: tuple[NotedJob, ...]
    config: Config | None
    """Null where config.yaml cannot be read."""

    @property
    def num_rollout(self) -> int | None:
        """Iterations of the whole run."""
        return None if self.config is None else self.config.rollout.num_rollout

    @property
    def checkpoints(self) -> Path:
        """Where it commits to."""
        save = None if self.config is None else self.config.ckpt.save
        return self.directory.checkpoints if save is None else Path(save)

    def gpus_of(self, attempt: Attempt) -> int:
        """That an attempt holds: those of all its nodes, spares included; 0 where the configuration cannot be read."""
        if self.config is None:
            return 0
        hosts = self.config.hosts
        return (len(attempt.nodes) or hosts.num_nodes) * hosts.gpus_per_node

    def job_ids(self, attempts: tuple[Attempt, ...]) -> frozenset[str]:
        """Jobs that may be live: those that submit noted, and that of the newest attempt, maybe started by hand."""
        return frozenset([job.job_id for job in self.jobs] + [one.job_id for one in self.recent(attempts)[-1:]])

    def recent(self, attempts: tuple[Attempt, ...]) -> tuple[Attempt, ...]:
        """Those since the last submit: who submits anew has mended what ended the others."""
        return tuple(attempt for attempt in attempts if attempt.started >= self.submitted - _CLOCK_SKEW_S)


def read_noted(directory: RunDir) -> Noted:
    """Raises NoRun where there is no run."""
    run = _required(directory)
    record = read_record(directory.jobs)
    local = record.get("cluster") == "local"
    jobs = [NotedJob(name, "") for name in record.get("stages", [])] if local else _jobs(record)
    return Noted(
        directory=directory,
        run_id=str(run.get("run_id", directory.root.name)),
        name=str(run.get("name", directory.root.name)),
        submitted=run.get("submitted", run.get("created", 0.0)),
        cluster=record.get("cluster"),
        host=str(record.get("host", "")),
        jobs=tuple(jobs),
        config=_config(directory),
    )


def _required(directory: RunDir) -> dict[str, Any]:
    try:
        value = json.loads(directory.run.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NoRun(
            f"{directory.root} is no run directory: it has no {directory.run.name}; give run.root/run.name of the"
            " configuration, the directory that submit printed"
        ) from None
    except (OSError, ValueError) as error:
        raise NoRun(f"{directory.run} cannot be read: {error}") from None
    return value if isinstance(value, dict) else {}


def _jobs(record: dict[str, Any]) -> list[NotedJob]:
    return [NotedJob(str(job["stage"]), str(job["job_id"])) for job in record.get("jobs", [])]


def _config(directory: RunDir) -> Config | None:
    try:
        return load_config(directory.config).config
    except (R1hpcError, OSError):
        return None
