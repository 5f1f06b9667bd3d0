"""Run directories written by hand: 2 nodes of 2 GPUs, 4 iterations to do, times in round seconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from r1hpc.cluster.slurm import JobElement
from r1hpc.config import dump_config, load_config
from r1hpc.metrics.history import append_line, rewind
from r1hpc.metrics.record import IterationRecord, RolloutNumbers
from r1hpc.rundir import AttemptDir, RunDir
from r1hpc.status.noted import Noted
from r1hpc.status.queue import Queue, grouped
from r1hpc.status.report import Look, Status, gather

ROOT = Path(__file__).resolve().parents[2]
BEGAN = 1_000_000.0
"""When the run was submitted."""


@dataclass
class WrittenRun:
    """A run directory, and how to write into it."""

    run: RunDir

    @classmethod
    def prepared(cls, root: Path) -> WrittenRun:
        """As `submit --prepare` leaves it."""
        directory = RunDir(root / "runs" / "rehearsal")
        for folder in (directory.logs, directory.attempts):
            folder.mkdir(parents=True)
        directory.config.write_text(_configuration().replace("/WORK", str(root)), encoding="utf-8")
        _write(directory.run, {"run_id": "rehearsal-aaaaaa", "name": "rehearsal", "submitted": BEGAN})
        return cls(directory)

    def submitted(self, *jobs: tuple[str, str]) -> None:
        """jobs: (stage, id)."""
        noted = [{"stage": stage, "job_id": job, "num_tasks": 1, "submitted": BEGAN} for stage, job in jobs]
        _write(self.run.jobs, {"cluster": "slurm", "jobs": noted})

    def converted(self) -> None:
        """The outputs of cast and convert are there."""
        config = load_config(self.run.config).config
        assert config.ckpt.bf16_checkpoint is not None
        assert config.ckpt.ref_load is not None
        cast, reference = Path(config.ckpt.bf16_checkpoint), Path(config.ckpt.ref_load)
        (reference / "release").mkdir(parents=True)
        (reference / "release" / ".metadata").touch()
        (reference / "latest_checkpointed_iteration.txt").write_text("release", encoding="utf-8")
        cast.mkdir()
        (cast / "a.safetensors").touch()
        _write(cast / "model.safetensors.index.json", {"weight_map": {"x": "a.safetensors"}})

    def attempt(self, name: str, started: float, *, nodes: Sequence[str] = ("node01", "node02")) -> AttemptDir:
        """Begin one, at so many seconds after the submit; name is JOB-rN."""
        job_id, _, restart = name.rpartition("-r")
        attempt = self.run.attempt(job_id, int(restart))
        attempt.logs.mkdir(parents=True)
        (attempt.logs / "node01-driver.log").touch()
        begin = {"job_id": job_id, "restart": int(restart), "started": BEGAN + started, "end_time": None}
        _write(attempt.begin, begin | {"nodes": [{"name": node, "address": "127.0.0.1"} for node in nodes]})
        return attempt

    def end(self, attempt: AttemptDir, ended: float, cause: str, action: str, reason: str = "", said: str = "") -> None:
        """Close its record."""
        record = {"ended": BEGAN + ended, "cause": cause, "action": action, "reason": reason, "exit_code": 75}
        _write(attempt.end, record | {"said": said, "blamed": [], "exclude": [], "progress": False})

    def iteration(self, number: int, attempt: AttemptDir, finished: float, seconds: float, reward: float = 0.5) -> None:
        """Record one, on 4 GPUs, and take back what it does again."""
        rewind(self.run.metrics, number)
        numbers = RolloutNumbers(number, reward, reward / 2, 10.0, 20, 0.0, 100, 80, 0, 20, 0.2, 0)
        record = IterationRecord(
            number, attempt.root.name, BEGAN + finished, 4, rollout=numbers, seconds={"iteration": seconds}
        )
        append_line(self.run.metrics, record.to_json())

    def commit(self, iteration: int, at: float) -> None:
        """Commit it."""
        directory = self.run.checkpoints / f"iter_{iteration:07d}"
        directory.mkdir(parents=True)
        content = {"format": 1, "iteration": iteration, "committed_at": BEGAN + at, "files": {}, "record": {}}
        _write(directory / "COMMITTED.json", {"commit": content, "xxh3": ""})

    def status(self, now: float, look: Look) -> Status:
        """As it stands so many seconds after the submit."""
        return gather(self.run, BEGAN + now, look)


def slurm(*elements: tuple[str, str] | tuple[str, str, str]) -> Look:
    """A Slurm that shows these (job id, state, reason), each a job of one element."""

    def look(noted: Noted, job_ids: frozenset[str]) -> Queue:
        return grouped([_element(*element) for element in elements], job_ids)

    return look


def slurm_array(job_id: str, *states: str) -> Look:
    """A Slurm that shows one array."""
    seen = [JobElement(job_id, index, state, "None", "") for index, state in enumerate(states)]
    return lambda noted, job_ids: grouped(seen, job_ids)


def no_slurm(noted: Noted, job_ids: frozenset[str]) -> Queue:
    """Files are all there is."""
    return Queue(silent="no Slurm on this host")


def _element(job_id: str, state: str, reason: str = "None") -> JobElement:
    return JobElement(job_id, 0, state, reason, "node[01-02]" if state == "RUNNING" else "")


@cache
def _configuration() -> str:
    """Resolved, in a directory /WORK."""
    overrides = ["run.root=/WORK/runs", "vars.WORK=/WORK", "hosts.num_nodes=2", "rollout.num_rollout=4"]
    return dump_config(load_config(ROOT / "tests" / "pipeline.yaml", overrides=overrides, environ={}).config)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
