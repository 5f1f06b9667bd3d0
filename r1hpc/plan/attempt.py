"""Whether one attempt, from its start to the signal before its time limit, leaves room for an iteration."""

from __future__ import annotations

from collections.abc import Iterator
from math import floor

from r1hpc.config import Config
from r1hpc.plan.problems import Problem
from r1hpc.plan.times import TimePlan
from r1hpc.plan.units import show_range


def attempt_problems(config: Config, times: TimePlan) -> Iterator[Problem]:
    """A time limit in which no iteration can end: start and signal fill it, or a measured iteration does not fit."""
    limit_s, iteration_s = 60 * config.slurm.time_limit, _measured_s(times)
    needed_s = times.start_s + iteration_s + times.signal_lead_s
    if needed_s < limit_s or (iteration_s and needed_s == limit_s):
        return
    iteration = f" + an iteration of {iteration_s:.0f} s (run.expected_rollout_minutes)" if iteration_s else ""
    room = f"; raise time_limit to {floor(needed_s / 60) + 1} minutes or more"
    if times.start_s + iteration_s + 60 < limit_s:
        room += ", or set a shorter slurm.signal_lead_minutes and rely on the periodic commits"
    yield Problem(
        "slurm.time_limit",
        f"no iteration ends within the time limit: {_start(times)}{iteration} + {_lead(config, times)}"
        f" = {needed_s:.0f} s, but time_limit = {limit_s} s (Slurm reads 24:00 as 24 minutes, 24:00:00 as a day){room}",
    )


def attempt_warnings(config: Config, times: TimePlan) -> Iterator[str]:
    """An estimated iteration that may not end within the time limit."""
    if times.iteration is None or times.iteration.measured:
        return
    low, high = times.iteration.low_minutes, times.iteration.high_minutes
    others_s = times.start_s + times.signal_lead_s
    if others_s + 60 * high <= 60 * config.slurm.time_limit:
        return
    yield (
        f"slurm.time_limit {config.slurm.time_limit} minutes: {_start(times)} + an iteration of"
        f" {show_range(low, high)} minutes (estimated) + {_lead(config, times)} ="
        f" {show_range(others_s / 60 + low, others_s / 60 + high)} minutes. An attempt may end without progress; raise"
        " time_limit, or set run.expected_rollout_minutes."
    )


def _measured_s(times: TimePlan) -> float:
    return 60 * times.iteration.high_minutes if times.iteration and times.iteration.measured else 0.0


def _start(times: TimePlan) -> str:
    return f"a start of {times.start_s:.0f} s ({times.save_s:.0f} s of it to read a commit)"


def _lead(config: Config, times: TimePlan) -> str:
    if config.slurm.signal_lead_minutes:
        return f"the signal's lead of {times.signal_lead_s} s (slurm.signal_lead_minutes)"
    return (
        f"the signal's lead of {times.signal_lead_s} s (a save takes {times.save_s:.0f} s at run.file_system_gbps ="
        f" {config.run.file_system_gbps:g})"
    )
