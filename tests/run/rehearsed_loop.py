"""The loop with scripted engines and trainers that only remember, but real sampler, commits, clock and metrics."""

from __future__ import annotations

import ast
import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from r1hpc.account import Account
from r1hpc.actors.memory import MemoryReading
from r1hpc.actors.trainers import TrainerGroup
from r1hpc.checkpoint.commit import Commits
from r1hpc.clock import Durations, SaveClock, SavePolicy
from r1hpc.cluster.stop import StopListener
from r1hpc.colocate import Colocation, Entering
from r1hpc.interrupt import Interrupt
from r1hpc.loop import Loop
from r1hpc.metrics.metrics import Metrics
from r1hpc.restore import restore
from r1hpc.rollout.sampler import Rollout, Sampler
from r1hpc.rundir import AttemptDir, RunDir
from r1hpc.saving import Saving
from r1hpc.train.checkpoint.start import where_to_start
from r1hpc.train.update_stats import StepStats, UpdateStats
from r1hpc.types import Sample
from tests.checkpoint.saves import Saved, save
from tests.metrics.reports import eval_result
from tests.rollout.scripted import Script, ScriptedEngines, make_rig, rollout_config

NUM_ROLLOUT = 6
FIELDS: dict[str, Any] = {
    "rollout_batch_size": 4,
    "over_sampling_batch_size": 7,
    "n_samples_per_prompt": 3,
    "num_rollout": NUM_ROLLOUT,
}
TRAINED = "trained.txt"

Trained = tuple[int, tuple[tuple[int, ...], ...]]
"""A rollout's id and the tokens of all of its samples, in order."""


class Killed(BaseException):
    """Stands for SIGKILL: nothing that catches errors catches it."""


@dataclass
class Steps:
    """Counts what happens, and lets the n-th be the one at which the attempt is killed or asked to stop."""

    at: int | None = None
    strike: Callable[[], None] = lambda: None
    told: list[str] = field(default_factory=list)

    def tell(self, what: str) -> None:
        self.told.append(what)
        if len(self.told) == self.at:
            self.strike()


class RememberingTrainers:
    """Remembers what it was trained on; a save writes that down."""

    def __init__(self, steps: Steps) -> None:
        self.trained: list[Trained] = []
        self.asleep = False
        self._steps = steps
        self._saving: tuple[Path, int, list[Trained]] | None = None

    async def load(self, directory: Path) -> None:
        self._steps.tell("load")

    async def resume(self, directory: Path) -> None:
        self._steps.tell("resume")
        self.trained = [ast.literal_eval(line) for line in (directory / TRAINED).read_text().splitlines()]

    async def update(self, samples: Sequence[Sample], rollout_id: int) -> UpdateStats:
        assert not self.asleep and self._saving is None
        self._steps.tell(f"update {rollout_id}")
        await asyncio.sleep(0)
        self.trained.append((rollout_id, tuple(tuple(sample.tokens.tolist()) for sample in samples)))
        self._steps.tell(f"updated {rollout_id}")
        return UpdateStats(rollout_id, (StepStats(len(self.trained), 1e-6, 1.0, 1, 10, 0.1),), {"steps": 0.1})

    async def memory(self) -> list[MemoryReading]:
        return [MemoryReading(rank, "host a", 100 - rank, 200, 10 + rank) for rank in range(2)]

    async def begin_save(self, directory: Path, iteration: int) -> None:
        self._steps.tell(f"begin_save {iteration}")
        self._saving = (directory, iteration, list(self.trained))

    async def finish_save(self) -> Saved:
        assert self._saving is not None
        directory, iteration, trained = self._saving
        self._steps.tell(f"finish_save {iteration}")
        saved = save(directory, iteration)
        (directory / TRAINED).write_text("".join(f"{each!r}\n" for each in trained))
        self._saving = None
        return saved


class Phases:
    """The two phases, in words."""

    def __init__(self, trainers: RememberingTrainers, engines: ScriptedEngines, steps: Steps) -> None:
        self.version = 0
        self.last_sync = None
        self._trainers, self._engines, self._steps = trainers, engines, steps

    def take_seconds(self) -> Mapping[str, float]:
        return {"sync": 0.1}

    @asynccontextmanager
    async def rollout_phase(self, entering: Entering) -> AsyncIterator[None]:
        await entering(self._to_engines())
        yield

    async def _to_engines(self) -> None:
        self._trainers.asleep, self._engines.version = True, self.version
        self._steps.tell(f"rollout phase, weights {self.version}")

    @asynccontextmanager
    async def train_phase(self) -> AsyncIterator[RememberingTrainers]:
        assert not self._engines.num_pending
        self._trainers.asleep = False
        self._steps.tell("train phase")
        yield self._trainers


class Evaluation:
    async def evaluate(self, rollout_id: int, weight_version: int) -> list[Any]:
        await asyncio.sleep(0.02)  # so that a stop request meets it
        return [eval_result(weight_version=weight_version)]


class TellingSampler:
    """Says when it begins and ends."""

    def __init__(self, sampler: Sampler, steps: Steps) -> None:
        self._sampler, self._steps = sampler, steps
        self.state, self.load_state = sampler.state, sampler.load_state

    async def rollout(self, rollout_id: int, weight_version: int) -> Rollout:
        self._steps.tell(f"rollout {rollout_id}")
        rollout = await self._sampler.rollout(rollout_id, weight_version)
        self._steps.tell(f"rolled {rollout_id}")
        return rollout


@dataclass
class Rehearsed:
    """One attempt."""

    loop: Loop
    trainers: RememberingTrainers
    steps: Steps
    metrics: Metrics


async def attempt(
    root: Path,
    steps: Steps,
    *,
    save_interval: int = 2,
    recycle: str = "prompts",
    num_rollout: int = NUM_ROLLOUT,
    listener: StopListener | None = None,
    now: Callable[[], float] = time.time,
    end_time: float | None = None,
) -> Rehearsed:
    """Made as r1hpc.wiring makes it."""
    run = RunDir(root)
    directory = AttemptDir(run.attempts / f"1-r{len(list(run.attempts.glob('*')))}")
    directory.root.mkdir(parents=True)
    config = rollout_config(**(FIELDS | {"recycle": recycle, "num_rollout": num_rollout}))
    rig = make_rig(config, Script(7, 9), num_prompts=23)
    trainers = RememberingTrainers(steps)
    whole = _config(root, config)
    start = where_to_start(whole.ckpt, run.checkpoints)
    rollouts = TellingSampler(rig.sampler, steps)
    restored = await restore(start, whole, cast("TrainerGroup", trainers), rollouts)
    commits = Commits(run.checkpoints, keep=2)
    commits.sweep()
    clock = SaveClock(
        SavePolicy(save_interval, None),
        restored.iteration,
        end_time,
        (lambda: None) if listener is None else (lambda: listener.deadline),
        save=Durations(1.0),
        now=now,
    )
    phases = cast("Colocation", Phases(trainers, rig.engines, steps))
    phases.version = restored.iteration
    last = restored.iteration - 1 if start.resumes else None
    saving = Saving(
        commits, cast("TrainerGroup", trainers), rollouts, clock, {"run_id": "r1"}, lambda commit: None, last
    )
    metrics = Metrics(run, restored.iteration, num_rollout)
    loop = Loop(
        colocation=phases,
        rollouts=rollouts,
        evaluation=Evaluation(),
        eval_interval=4,
        saving=saving,
        clock=clock,
        account=Account(metrics, clock, saving, phases, directory, 8),
        interrupt=Interrupt(listener or silent()),
        first=restored.iteration,
        num_rollout=num_rollout,
    )
    return Rehearsed(loop, trainers, steps, metrics)


def silent() -> StopListener:
    """An agent that never asks; its pipe stays open as long as this process lives."""
    reader, _ = os.pipe()
    return StopListener(os.fdopen(reader, encoding="utf-8"))


def _config(root: Path, rollout: Any) -> Any:
    from r1hpc.config import load_config
    from r1hpc.submit.parameters import HOME

    overrides = [f"vars.WORK={root}", f"ckpt.ref_load={root}/reference", "grpo.use_kl_loss=false"]
    config = load_config(HOME / "tests" / "pipeline.yaml", overrides=overrides).config
    return config.model_copy(update={"rollout": rollout})
