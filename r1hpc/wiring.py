"""Everything of a training attempt, made and connected in the order in which its parts need each other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray.util.placement_group import PlacementGroup

from r1hpc.account import Account
from r1hpc.actors.engines import EngineGroup
from r1hpc.actors.trainers import TrainerGroup
from r1hpc.checkpoint.commit import Commit, Commits
from r1hpc.checkpoint.commits.belonging import refuse_other_runs
from r1hpc.checkpoint.records import read_object
from r1hpc.clock import Durations, SaveClock, SavePolicy
from r1hpc.cluster.grace import read_grace
from r1hpc.cluster.launch import Launch, engine_key, read_secret
from r1hpc.cluster.outcome import record_progress
from r1hpc.cluster.ray import Slot
from r1hpc.cluster.stop import StopListener
from r1hpc.colocate import Colocation, WakingNeeds
from r1hpc.config import Config
from r1hpc.interrupt import Interrupt
from r1hpc.loop import Evaluation, Loop
from r1hpc.metrics.metrics import Metrics
from r1hpc.metrics.progress import say_progress
from r1hpc.plan.model_shape import read_model_shape
from r1hpc.plan.plan import make_plan
from r1hpc.restore import Restored, restore
from r1hpc.rollout.dispatch import Dispatcher
from r1hpc.rollout.progress import ProgressCallback, ProgressLines, RolloutProgress
from r1hpc.rollout.recorded import Recorder, Replay, Rollouts
from r1hpc.rundir import AttemptDir, RunDir
from r1hpc.sampling_parts import Prompts, make_evaluator, make_sampler, started_rewards
from r1hpc.saving import Saving
from r1hpc.train.checkpoint.start import where_to_start

logger = logging.getLogger(__name__)

NEVER = 1 << 60
"""Interval of an evaluation that is off."""
START_S = 3600.0
"""For all engines, or all trainers, to come up: an engine of R1 reads 688 GB first."""


@dataclass(frozen=True)
class Attempt:
    """What an attempt is given before anything of it runs."""

    run: RunDir
    directory: AttemptDir
    config: Config
    launch: Launch
    group: PlacementGroup
    slots: Sequence[Slot]
    stop: StopListener
    start_s: float = START_S
    """Seconds in which all engines, and then all trainers, must be up."""


@dataclass(frozen=True)
class _Started:
    """What runs, and has no weights yet."""

    trainers: TrainerGroup
    colocation: Colocation
    rollouts: Rollouts
    evaluation: Evaluation | None


@asynccontextmanager
async def wired(attempt: Attempt) -> AsyncIterator[Loop]:
    """The loop with all its parts, restored to where the run stands; everything is ended when the block ends.

    Raises StopRequested where somebody asks to stop before the loop is there, and ConfigError for what no other attempt
    could do better: a directory with another run's commits, a reward or a filter that does not load.
    """
    config, save = attempt.config, _save_directory(attempt)
    interrupt = Interrupt(attempt.stop)
    record = _commit_record(attempt)
    await asyncio.to_thread(refuse_other_runs, save, record["run_id"])
    commits = Commits(save, config.ckpt.keep)
    # Before anything is started: an attempt of this run that lives on somewhere can commit no more from here on.
    await asyncio.to_thread(commits.sweep)
    start = where_to_start(config.ckpt, save)
    async with AsyncExitStack() as stack:
        say_progress(attempt.directory, "starting", detail="engines and trainers")
        parts = await interrupt.unless(_started(attempt, Closing(stack, interrupt)), "while the attempt started")
        say_progress(attempt.directory, "loading", detail=start.reason)
        restoring = restore(start, config, parts.trainers, parts.rollouts)
        restored = await interrupt.unless(restoring, "while the attempt loaded its weights")
        parts.colocation.version = restored.iteration
        clock = _clock(attempt, restored)
        saving = Saving(
            commits,
            parts.trainers,
            parts.rollouts,
            clock,
            record,
            partial(_note_commit, attempt.directory),
            restored.iteration - 1 if start.resumes else None,
        )
        metrics = Metrics(attempt.run, restored.iteration, config.rollout.num_rollout)
        stack.callback(metrics.close)
        yield Loop(
            colocation=parts.colocation,
            rollouts=parts.rollouts,
            evaluation=parts.evaluation,
            eval_interval=config.eval.eval_interval or NEVER,
            saving=saving,
            clock=clock,
            account=Account(metrics, clock, saving, parts.colocation, attempt.directory, len(attempt.slots)),
            interrupt=interrupt,
            first=restored.iteration,
            num_rollout=config.rollout.num_rollout,
            trains=not config.debug.rollout_only,
        )


@dataclass(frozen=True)
class Closing:
    """Ends what was started, the last first; but not after a stop request: the agent ends every process faster."""

    stack: AsyncExitStack
    interrupt: Interrupt

    def add(self, close: Callable[[], Awaitable[None]]) -> None:
        """Have `close` called when the attempt ends in order."""

        async def unless_asked() -> None:
            if self.interrupt.requested is None:
                await close()

        self.stack.push_async_callback(unless_asked)


async def _started(attempt: Attempt, closing: Closing) -> _Started:
    if attempt.config.debug.replay_rollouts is not None:
        return await _started_on_replay(attempt, closing, Path(attempt.config.debug.replay_rollouts))
    config = attempt.config
    prompts = await asyncio.to_thread(Prompts.open, config, logger.info)
    rewards = await started_rewards(config)
    closing.add(rewards.close)
    key = engine_key(read_secret(attempt.directory.secret))
    engines = await EngineGroup.start(
        config, attempt.launch, attempt.group, attempt.slots, attempt.directory.logs, attempt.start_s, secret=key
    )
    closing.add(engines.close)
    # The trainers find the memory of their GPUs free.
    await engines.release_memory()
    trainers = await _trainers(attempt, closing)
    dispatcher = Dispatcher(on_down=engines.report_down)
    closing.add(dispatcher.close)
    colocation = Colocation(trainers, engines, dispatcher, _needs(config), config.sync)
    closing.add(colocation.close)
    sampler = make_sampler(config, prompts, dispatcher, rewards, _progress(attempt.directory))
    rollouts = Recorder(sampler, attempt.run.rollouts) if config.debug.save_rollouts else sampler
    return _Started(trainers, colocation, rollouts, make_evaluator(config, prompts, dispatcher, rewards))


async def _started_on_replay(attempt: Attempt, closing: Closing, recorded: Path) -> _Started:
    trainers = await _trainers(attempt, closing)
    colocation = Colocation(trainers, None, None, _needs(attempt.config), attempt.config.sync)
    closing.add(colocation.close)
    return _Started(trainers, colocation, Replay(recorded, attempt.config.rollout), None)


async def _trainers(attempt: Attempt, closing: Closing) -> TrainerGroup:
    trainers = await TrainerGroup.start(
        attempt.config, attempt.launch, attempt.group, attempt.slots, attempt.directory.logs, attempt.start_s
    )
    closing.add(trainers.close)
    return trainers


def _needs(config: Config) -> WakingNeeds:
    shape = read_model_shape(Path(config.ckpt.hf_checkpoint) / "config.json")
    return WakingNeeds.of(make_plan(config, shape))


def _clock(attempt: Attempt, restored: Restored) -> SaveClock:
    config, plan = attempt.config, read_object(attempt.run.plan) or {}
    clock = SaveClock(
        SavePolicy(config.ckpt.save_interval, plan["times"]["save_minutes"]),
        restored.iteration,
        read_grace(attempt.directory.begin, attempt.run.run).end_time,
        lambda: attempt.stop.deadline,
        save=Durations(plan["times"]["save_s"]),
    )
    clock.remember(restored.record.get("clock", {}))
    return clock


def _save_directory(attempt: Attempt) -> Path:
    """Where the run commits to."""
    return Path(attempt.config.ckpt.save) if attempt.config.ckpt.save is not None else attempt.run.checkpoints


def _commit_record(attempt: Attempt) -> dict[str, Any]:
    run = read_object(attempt.run.run) or {}
    return {"run_id": run["run_id"], "config_hash": run["config_hash"], "attempt": attempt.directory.root.name}


def _note_commit(attempt: AttemptDir, commit: Commit) -> None:
    record_progress(attempt, commit.iteration)


def _progress(attempt: AttemptDir) -> ProgressCallback:
    lines = ProgressLines(logger.info)
    details = ProgressLines(lambda line: say_progress(attempt, "rollout", None, line))

    def tell(progress: RolloutProgress) -> None:
        lines(progress)
        details.say = partial(say_progress, attempt, "rollout", progress.rollout_id)
        details(progress)

    return tell
