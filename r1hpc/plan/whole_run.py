"""What a run costs from its first iteration to its last: GPU-hours, and jobs that reach their time limit."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from r1hpc.config import Config
from r1hpc.plan.iteration import IterationTime


@dataclass(frozen=True)
class WholeRun:
    """Each at best and at worst; preemptions and failures left out."""

    gpu_hours: tuple[float, float]
    """Of all iterations, and of the start of each attempt and the time after its signal."""
    attempts: tuple[int, int]
    """Jobs of slurm.time_limit that it takes, each of which ends with a whole iteration."""


def whole_run(
    config: Config, iteration: IterationTime | None, start_s: float, signal_lead_s: int, world_size: int
) -> WholeRun | None:
    """Null where nothing is known of an iteration, or the slowest does not fit into an attempt."""
    if iteration is None:
        return None
    idle_minutes = (start_s + signal_lead_s) / 60
    costs = []
    for minutes in (iteration.low_minutes, iteration.high_minutes):
        fitting = int((config.slurm.time_limit - idle_minutes) / minutes)
        if fitting < 1:
            return None
        num_rollout = config.rollout.num_rollout
        attempts = ceil(num_rollout / fitting)
        costs.append((world_size * (num_rollout * minutes + attempts * idle_minutes) / 60, attempts))
    (low_hours, low_attempts), (high_hours, high_attempts) = costs
    return WholeRun((low_hours, high_hours), (low_attempts, high_attempts))
