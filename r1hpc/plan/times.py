"""How long saves take, how often they should be, when to signal, and what an interruption costs."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

from r1hpc.config import Config
from r1hpc.plan.array_stages import ArrayStages, make_array_stages
from r1hpc.plan.assumptions import (
    GB,
    MAX_SIGNAL_LEAD_S,
    SAVE_SPREAD,
    SLURM_SIGNAL_SLACK_S,
    Assumptions,
)
from r1hpc.plan.host_adam import HostAdamStep
from r1hpc.plan.iteration import IterationTime
from r1hpc.plan.storage import StoragePlan
from r1hpc.plan.whole_run import WholeRun, whole_run


@dataclass(frozen=True)
class TimePlan:
    """Times of a run; seconds and minutes follow from run.file_system_gbps, to be replaced by what is measured."""

    save_s: float
    """One full commit at the given write speed. It streams during the next rollout; the loop does not wait for it."""
    stages: ArrayStages
    cast_s: float
    convert_s: float
    """Until it is published: written, and read again."""
    advised_save_minutes: int
    """sqrt(2 * save time * mean time between interruptions): Young 1974, Daly 2006."""
    save_minutes: int
    """Between commits by the clock: ckpt.save_minutes, else the advice."""
    iteration: IterationTime | None
    """null while nothing is known of it."""
    save_iterations: tuple[int, int] | None
    """The interval by the clock in iterations, whole ones, at least 1: if they are slow, if they are fast."""
    interval_minutes: float
    """Between commits as they will fall: by the clock, or by ckpt.save_interval when that surely comes first."""
    exposure_minutes: tuple[float, float] | None
    """What ckpt.save_interval alone would put at risk."""
    needed_lead_s: int
    """Expected save and its spread, the step under way, and Slurm's 60 s of slack."""
    signal_lead_s: int
    """When Slurm signals before the time limit: slurm.signal_lead_minutes, else what is needed."""
    overhead: float
    """Share of time for saves and for work done twice, were saves not hidden behind rollouts."""
    lost_gpu_hours: float
    """Expected of one preemption: half an interval done again, and the restart."""
    start_s: float
    """Of an attempt, from its allocation to its first iteration: bring-up, and reading the commit."""
    restart_s: float
    """From a preemption to the first new iteration: the requeue delay, and the start."""
    days: tuple[float, float] | None
    """Of the whole run, interruptions left out."""
    whole_run: WholeRun | None
    """GPU-hours and attempts; null while nothing is known of an iteration."""
    host_adam: HostAdamStep | None
    """null where the optimizer's state lies on the GPUs."""


def save_seconds(size_bytes: int, gbps: float) -> float:
    """Seconds to write `size_bytes` at `gbps` GB/s."""
    return size_bytes / (gbps * GB)


def advised_interval(save_minutes: float, interruption_minutes: float) -> float:
    """Minutes between saves that lose the least: Young, CACM 17(9), 1974."""
    return sqrt(2 * save_minutes * interruption_minutes)


def interval_overhead(save_minutes: float, interval_minutes: float, interruption_minutes: float) -> float:
    """Share of time spent saving and repeating: save / interval + interval / (2 * time between interruptions)."""
    return save_minutes / interval_minutes + interval_minutes / (2 * interruption_minutes)


def needed_signal_lead(save_s: float, device: Assumptions) -> int:
    """Seconds before the time limit at which a save must be asked for."""
    return ceil(save_s * (1 + SAVE_SPREAD)) + device.step_margin_s + SLURM_SIGNAL_SLACK_S


def make_times(
    config: Config,
    storage: StoragePlan,
    adam: HostAdamStep | None,
    world_size: int,
    iteration: IterationTime | None,
    device: Assumptions,
) -> TimePlan:
    """The time plan of a run."""
    gbps = config.run.file_system_gbps
    save_s = save_seconds(storage.commit_bytes, gbps)
    interruption = 60 * config.run.mean_hours_between_interruptions
    advised = max(1, round(advised_interval(save_s / 60, interruption)))
    by_clock = config.ckpt.save_minutes or advised
    exposure = _scaled(iteration, config.ckpt.save_interval)
    interval = _interval(by_clock, exposure, iteration)
    start_s = device.start_s + save_s
    restart_s = device.requeue_delay_s + start_s
    needed = needed_signal_lead(save_s, device)
    asked = config.slurm.signal_lead_minutes
    lead_s = min(asked * 60 if asked else needed, MAX_SIGNAL_LEAD_S)
    stages = make_array_stages(config, storage)
    return TimePlan(
        save_s=save_s,
        stages=stages,
        cast_s=stages.cast.seconds if stages.cast else 0.0,
        convert_s=sum(stage.seconds for stage in (stages.convert, stages.recheck) if stage),
        advised_save_minutes=advised,
        save_minutes=by_clock,
        iteration=iteration,
        save_iterations=_iterations(by_clock, iteration),
        interval_minutes=interval,
        exposure_minutes=exposure,
        needed_lead_s=needed,
        signal_lead_s=lead_s,
        overhead=interval_overhead(save_s / 60, interval, interruption),
        lost_gpu_hours=world_size * (interval / 2 + restart_s / 60) / 60,
        start_s=start_s,
        restart_s=restart_s,
        days=_scaled(iteration, config.rollout.num_rollout / 1440),
        whole_run=whole_run(config, iteration, start_s, lead_s, world_size),
        host_adam=adam,
    )


def _scaled(iteration: IterationTime | None, factor: float | None) -> tuple[float, float] | None:
    if iteration is None or factor is None:
        return None
    return iteration.low_minutes * factor, iteration.high_minutes * factor


def _iterations(minutes: float, iteration: IterationTime | None) -> tuple[int, int] | None:
    if iteration is None:
        return None
    return max(1, int(minutes / iteration.high_minutes)), max(1, int(minutes / iteration.low_minutes))


def _interval(by_clock: float, exposure: tuple[float, float] | None, iteration: IterationTime | None) -> float:
    """A commit falls at the end of an iteration, so an interval is never shorter than one."""
    by_count = exposure[1] if exposure else by_clock
    return max(float(min(by_clock, by_count)), iteration.low_minutes if iteration else 0.0)
