"""The whole status of a run: gathered from its directory and one look at what is live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from r1hpc.cluster.slurm import SlurmClient
from r1hpc.metrics.history import dropped_path, read_history
from r1hpc.metrics.progress import read_progress
from r1hpc.metrics.record import Line
from r1hpc.metrics.remaining import remaining_s
from r1hpc.rundir import AttemptDir, RunDir
from r1hpc.status.attempts import Attempt, read_attempts
from r1hpc.status.commits import CommitSeen, newest_seen
from r1hpc.status.files import read_record
from r1hpc.status.hours import GpuHours, gpu_hours
from r1hpc.status.noted import Noted, read_noted
from r1hpc.status.queue import Queue, ask, ask_here
from r1hpc.status.silence import Silence, silence_of
from r1hpc.status.stages import StageState, stage_states, unfinished
from r1hpc.status.verdict import Evidence, Verdict, judge

Look = Callable[[Noted, frozenset[str]], Queue]
"""Tells what is live of a run with these jobs."""


@dataclass(frozen=True)
class Evaluation:
    """The newest of a held-out set."""

    accuracy: float | None
    weight_version: int
    """Number of iterations that the weights were trained for."""


@dataclass(frozen=True)
class Status:
    """Where a run stands."""

    noted: Noted
    verdict: Verdict
    stages: tuple[StageState, ...]
    iterations: int
    """Done, and not taken back."""
    last: Line | None
    """The newest of them."""
    seconds_left: float | None
    """Until the last iteration ends, if nothing interrupts."""
    evaluations: dict[str, Evaluation]
    progress: dict[str, Any] | None
    """What the driver does now; null where none is at work."""
    silence: Silence | None
    """Of the live attempt; null where there is none."""
    commit: CommitSeen | None
    attempts: tuple[Attempt, ...]
    hours: GpuHours
    now: float
    """Unix time at which this was true."""

    def to_json(self) -> dict[str, Any]:
        """docs/operations.md explains it key by key."""
        last, noted = self.last or {}, self.noted
        return {
            "run": {"directory": str(noted.directory.root), "id": noted.run_id, "name": noted.name},
            "time": self.now,
            "state": self.verdict.state,
            "why": self.verdict.why,
            "todo": self.verdict.todo,
            "certain": self.verdict.certain,
            "stages": [_plain(stage) for stage in self.stages],
            "iterations": self.iterations,
            "num_rollout": noted.num_rollout,
            "reward": last.get("rollout/reward"),
            "reward_finished": last.get("rollout/reward_finished"),
            "evaluations": {name: asdict(found) for name, found in self.evaluations.items()},
            "seconds_left": self.seconds_left,
            "progress": self.progress,
            "silent_s": None if self.silence is None else self.silence.seconds,
            "commit": None if self.commit is None else _plain(self.commit),
            "attempts": [_plain(attempt) for attempt in self.attempts],
            "gpu_hours": asdict(self.hours) | {"lost": self.hours.lost},
        }


def look(noted: Noted, job_ids: frozenset[str]) -> Queue:
    """Ask Slurm, or this host where the run uses no Slurm."""
    if noted.cluster == "local":
        return ask_here(noted.run_id, noted.host)
    return ask(job_ids, noted.owner, SlurmClient()) if job_ids else Queue()


def gather(directory: RunDir, now: float, look_at: Look = look) -> Status:
    """Read everything. Raises NoRun where there is no run."""
    noted = read_noted(directory)
    lines = read_history(directory.metrics).lines
    dropped = read_history(dropped_path(directory.metrics)).lines
    attempts = read_attempts(directory, (*lines, *dropped))
    queue = look_at(noted, noted.job_ids(attempts))
    recent, done = noted.recent(attempts), directory.done.exists()
    stages = stage_states(noted, queue, recent, done)
    last = recent[-1] if recent and recent[-1].cause is None else None
    progress = {} if last is None else read_progress(AttemptDir(directory.attempts / last.name))
    silence = None if last is None else silence_of(last, progress.get("what"), lines, now)
    verdict = judge(
        Evidence(
            noted=noted,
            attempts=recent,
            queue=queue,
            done=done,
            hold=read_record(directory.hold) or ({"reason": "no reason given"} if directory.hold.exists() else {}),
            local_exit=read_record(directory.logs / "local.json") if noted.cluster == "local" else {},
            unfinished=unfinished(stages, noted),
            silence=silence,
        )
    )
    live = last.name if last is not None and verdict.state == "running" else None
    return Status(
        noted=noted,
        verdict=verdict,
        stages=stages,
        iterations=len(lines),
        last=lines[-1] if lines else None,
        seconds_left=None if noted.num_rollout is None else remaining_s(lines, noted.num_rollout),
        evaluations=_evaluations(lines),
        progress=None if live is None else progress or None,
        silence=None if live is None else silence,
        commit=newest_seen(noted.checkpoints),
        attempts=attempts,
        hours=gpu_hours(attempts, lines, dropped, {each.name: noted.gpus_of(each) for each in attempts}, live, now),
        now=now,
    )


def _evaluations(lines: tuple[Line, ...]) -> dict[str, Evaluation]:
    """The newest of each set."""
    found = {}
    for line in lines:
        for prefix in ("eval", "final_eval"):
            for key in line:
                if key.startswith(f"{prefix}/") and key.endswith("/pass@1"):
                    name = key.removeprefix(f"{prefix}/").removesuffix("/pass@1")
                    found[name] = Evaluation(line[key], line[f"{prefix}/{name}/weight_version"])
    return found


def _plain(record: Any) -> dict[str, Any]:
    """A dataclass with its paths as text."""
    return {name: _text(value) for name, value in asdict(record).items()}


def _text(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return [_text(item) for item in value] if isinstance(value, tuple) else value
