"""What submit and the stages have noted of a run: its identity, its jobs, its configuration."""

from __future__ import annotations

import json
import os
import shlex
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
    """"" for a stage of a local run."""


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
    pid: int | None
    """Of their process there."""
    owner: int
    """uid of who submitted it: the jobs are this user's."""
    sweep_of: str | None
    """Id of the run whose array it is an element of; null: it is none, or was submitted by itself since."""
    jobs: tuple[NotedJob, ...]
    """Of an element: those of its sweep, of the array its own element."""
    config: Config | None
    """Null where config.yaml cannot be read."""
    submit: str
    """The command that goes on with it: as it was submitted, from the same directory; as resolved, where no record
    says how."""

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
    sweep_of = run.get("sweep_of")
    record = read_record(directory.jobs)
    if not record and sweep_of is not None:
        record = _of_sweep(directory, str(sweep_of))
    local = record.get("cluster") == "local"
    jobs = [NotedJob(str(name), "") for name in _list(record, "stages")] if local else _jobs(record)
    pid = record.get("pid")
    return Noted(
        directory=directory,
        run_id=str(run.get("run_id", directory.root.name)),
        name=str(run.get("name", directory.root.name)),
        submitted=run.get("submitted", run.get("created", 0.0)),
        cluster=record.get("cluster"),
        host=str(record.get("host", "")),
        pid=pid if isinstance(pid, int) else None,
        owner=directory.run.stat().st_uid,
        sweep_of=sweep_of,
        jobs=tuple(jobs),
        config=_config(directory),
        submit=_submit(run, directory),
    )


def _required(directory: RunDir) -> dict[str, Any]:
    try:
        value = json.loads(directory.run.read_text(encoding="utf-8"))
    except NotADirectoryError:
        raise NoRun(_of_a_file(directory.root)) from None
    except FileNotFoundError:
        raise NoRun(
            f"{directory.root} is no run directory: it has no {directory.run.name}; give run.root/run.name of the"
            " configuration, the directory that submit printed"
        ) from None
    except (OSError, ValueError) as error:
        raise NoRun(f"{directory.run} cannot be read: {error}") from None
    return value if isinstance(value, dict) else {}


def _of_sweep(directory: RunDir, sweep_of: str) -> dict[str, Any]:
    """jobs.json of the sweep's own directory as it is for this element; {} where the element is not in it any more.

    A run id is the run's name and six hex digits, and the elements of a sweep lie beside its directory.
    """
    base = RunDir(directory.root.parent / sweep_of.rpartition("-")[0])
    if read_record(base.run).get("run_id") != sweep_of:
        return {}
    try:
        elements = [Path(line) for line in base.sweep_index.read_text(encoding="utf-8").splitlines()]
        index = [path.resolve() for path in elements].index(directory.root.resolve())
    except (OSError, ValueError):
        return {}
    record = read_record(base.jobs)
    *before, array = _entries(record) or [{}]
    if not array:
        return {}
    own = array["job_id"] if array.get("num_tasks", 1) == 1 else f"{array['job_id']}_{index}"
    return {**record, "jobs": [*before, {**array, "job_id": own}]}


def _of_a_file(path: Path) -> str:
    """Most likely it is the configuration, as submit takes it."""
    told = f"{path} is a file, and a run is a directory"
    try:
        run = load_config(path).config.run
    except (R1hpcError, OSError):
        return f"{told}: give run.root/run.name of the configuration, the directory that submit printed"
    return f"{told}; the one that it configures, without --site and --set, is {Path(run.root) / run.name}"


def _submit(run: dict[str, Any], directory: RunDir) -> str:
    words, cwd = _list(run, "command"), run.get("cwd")
    if not words:
        return shlex.join(["python", "-m", "r1hpc.submit", str(directory.config)])
    command = shlex.join(["python", "-m", "r1hpc.submit", *map(str, words)])
    return command if not isinstance(cwd, str) or _is_here(cwd) else f"cd {shlex.quote(cwd)} && {command}"


def _is_here(directory: str) -> bool:
    try:
        return os.path.samefile(directory, ".")
    except OSError:
        return False


def _list(record: dict[str, Any], key: str) -> list[Any]:
    value = record.get(key)
    return value if isinstance(value, list) else []


def _entries(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The jobs of jobs.json that have a stage and an id."""
    return [job for job in _list(record, "jobs") if isinstance(job, dict) and {"stage", "job_id"} <= job.keys()]


def _jobs(record: dict[str, Any]) -> list[NotedJob]:
    return [NotedJob(str(job["stage"]), str(job["job_id"])) for job in _entries(record)]


def _config(directory: RunDir) -> Config | None:
    try:
        return load_config(directory.config).config
    except (R1hpcError, OSError):
        return None
