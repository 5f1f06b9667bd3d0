"""How long saves take, how often they should be, when to signal, and what an interruption costs."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, sqrt

from r1hpc.config import Config
from r1hpc.plan.assumptions import (
    ADAM_TRAFFIC_BYTES,
    GB,
    MAX_SIGNAL_LEAD_S,
    SAVE_SPREAD,
    SLURM_SIGNAL_SLACK_S,
    Assumptions,
)
from r1hpc.plan.host_memory import HostMemory
from r1hpc.plan.storage import StoragePlan


@dataclass(frozen=True)
class TimePlan:
    """Times of a run; seconds and minutes follow from run.file_system_gbps, to be replaced by what is measured."""

    save_s: float
    """One full commit at the given write speed. It streams during the next rollout; the loop does not wait for it."""
    cast_s: float
    convert_s: float
    advised_save_minutes: int
    """sqrt(2 * save time * mean time between interruptions): Young 1974, Daly 2006."""
    save_minutes: int
    """Between commits by the clock: ckpt.save_minutes, else the advice."""
    save_iterations: int | None
    """The same in iterations, whole ones, at least 1; null while an iteration's time is unknown."""
    interval_minutes: float
    """Between commits as they will fall: by the clock or by ckpt.save_interval, whichever comes first."""
    count_interval_minutes: float | None
    """What ckpt.save_interval alone would leave between commits; null while an iteration's time is unknown."""
    needed_lead_s: int
    """Expected save and its spread, the step under way, and Slurm's 60 s of slack."""
    signal_lead_s: int
    """When Slurm signals before the time limit: slurm.signal_lead_minutes, else what is needed."""
    overhead: float
    """Share of time for saves and for work done twice, were saves not hidden behind rollouts."""
    lost_gpu_hours: float
    """Expected of one preemption: half an interval done again, and the restart."""
    restart_s: float
    attempts: float | None
    """Time limits that the whole run takes; null while an iteration's time is unknown."""
    days: float | None
    adam_traffic_bytes: int
    """Moved through the memory of the fullest node by one step of host Adam."""


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
    config: Config, storage: StoragePlan, hosts: tuple[HostMemory, ...], world_size: int, device: Assumptions
) -> TimePlan:
    """The time plan of a run."""
    run = config.run
    save_s = save_seconds(storage.commit_bytes, run.file_system_gbps)
    interruption = 60 * run.mean_hours_between_interruptions
    advised = advised_interval(save_s / 60, interruption)
    by_clock = config.ckpt.save_minutes or max(1, round(advised))
    iteration = run.expected_rollout_minutes or None
    by_count = None
    if iteration and config.ckpt.save_interval:
        by_count = config.ckpt.save_interval * iteration
    interval = min(by_clock, by_count) if by_count else float(by_clock)
    restart_s = device.restart_s + save_s
    needed = needed_signal_lead(save_s, device)
    asked = config.slurm.signal_lead_minutes
    total_minutes = config.rollout.num_rollout * iteration if iteration else None
    source = storage.disk[0].bytes
    cast_bytes = next((part.bytes for part in storage.disk if part.name == "bf16 copy"), 0)
    return TimePlan(
        save_s=save_s,
        cast_s=save_seconds(source + cast_bytes, run.file_system_gbps) if cast_bytes else 0.0,
        convert_s=save_seconds((cast_bytes or source) + storage.weight_bytes, run.file_system_gbps),
        advised_save_minutes=max(1, round(advised)),
        save_minutes=by_clock,
        save_iterations=max(1, round(by_clock / iteration)) if iteration else None,
        interval_minutes=interval,
        count_interval_minutes=by_count,
        needed_lead_s=needed,
        signal_lead_s=min(asked * 60 if asked else needed, MAX_SIGNAL_LEAD_S),
        overhead=interval_overhead(save_s / 60, interval, interruption),
        lost_gpu_hours=world_size * (interval / 2 + restart_s / 60) / 60,
        restart_s=restart_s,
        attempts=total_minutes / config.slurm.time_limit if total_minutes else None,
        days=total_minutes / 1440 if total_minutes else None,
        adam_traffic_bytes=ADAM_TRAFFIC_BYTES * max(host.optimizer_parameters for host in hosts),
    )
