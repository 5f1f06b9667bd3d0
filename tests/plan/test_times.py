"""Saves, intervals, the signal's lead, and what an interruption costs."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import pytest

from r1hpc.plan import Plan, render_plan
from r1hpc.plan.times import advised_interval, interval_overhead, save_seconds

PlanWith = Callable[..., Plan]
ON_GPUS = (
    "hosts.gpu_memory_gib=300",
    "optimizer.optimizer_cpu_offload=false",
    "optimizer.overlap_cpu_optimizer_d2h_h2d=false",
)
"""Optimizer states."""


@pytest.mark.parametrize(("gbps", "minutes"), [(20, 7.8), (50, 3.1), (100, 1.6)])
def test_a_commit_of_9_4_tb_at_published_speeds(gbps: float, minutes: float) -> None:
    assert save_seconds(9_394_000_000_000, gbps) / 60 == pytest.approx(minutes, abs=0.05)


@pytest.mark.parametrize(("save", "interval", "overhead"), [(5, 120, 0.08), (2, 76, 0.05)])
def test_the_interval_that_loses_least(save: float, interval: float, overhead: float) -> None:
    day = 24 * 60
    assert advised_interval(save, day) == pytest.approx(sqrt(2 * save * day))
    assert advised_interval(save, day) == pytest.approx(interval, abs=0.5)
    assert interval_overhead(save, advised_interval(save, day), day) == pytest.approx(overhead, abs=0.005)
    # nothing nearby loses less
    best = interval_overhead(save, interval, day)
    assert all(interval_overhead(save, interval * factor, day) > best - 1e-4 for factor in (0.5, 0.9, 1.1, 2))


def test_r1_saves_in_470_seconds_and_is_told_to_every_150_minutes(r1_plan: Plan) -> None:
    assert r1_plan.save_s == pytest.approx(9.394e12 / 20e9, rel=1e-4) == pytest.approx(470, abs=1)
    assert r1_plan.advised_save_minutes == round(sqrt(2 * 470 / 60 * 1440)) == 150


def test_the_lead_covers_save_spread_step_and_slack(r1_plan: Plan) -> None:
    assert r1_plan.signal_lead_s == 588 + 120 + 60
    assert round(469.72 * 1.25 + 0.5) == 588


def test_a_slow_file_system_needs_a_longer_lead_up_to_what_slurm_takes(plan_r1: PlanWith) -> None:
    assert plan_r1("run.file_system_gbps=2").signal_lead_s == 5872 + 180
    slow = plan_r1("run.file_system_gbps=0.1", "slurm.time_limit=2-00:00:00")
    assert slow.signal_lead_s == 65_535
    assert any("the 65535 s that --signal allows = 65535 s is less than" in text for text in slow.warnings)


def test_a_lead_in_the_configuration_wins(plan_r1: PlanWith) -> None:
    assert plan_r1("slurm.signal_lead_minutes=30").signal_lead_s == 1800


def test_minutes_in_the_configuration_win_over_the_advice(plan_r1: PlanWith) -> None:
    plan = plan_r1("ckpt.save_minutes=60", "run.expected_rollout_minutes=20")
    assert (plan.times.save_minutes, plan.advised_save_minutes) == (60, 150)
    assert plan.times.save_iterations == (3, 3)


def test_commits_come_at_the_end_of_iterations(plan_r1: PlanWith) -> None:
    assert plan_r1("run.expected_rollout_minutes=20").times.interval_minutes == 150
    assert plan_r1("run.expected_rollout_minutes=200").times.interval_minutes == 200
    assert plan_r1("run.expected_rollout_minutes=5", "ckpt.save_interval=10").times.interval_minutes == 50


def test_what_a_preemption_loses(plan_r1: PlanWith) -> None:
    plan = plan_r1("run.expected_rollout_minutes=20")
    restart = 600 + plan.save_s
    assert plan.times.lost_gpu_hours == pytest.approx(128 * (75 / 60 + restart / 3600))


def test_an_iteration_is_estimated_in_the_published_range(r1_plan: Plan) -> None:
    """15 to 30 minutes, 31 to 62 days: 32 k tokens at 60 and 25 tokens/s, an update of about 280 s."""
    iteration = r1_plan.times.iteration
    assert iteration is not None
    assert not iteration.measured
    assert iteration.low_minutes == pytest.approx(15, rel=0.1)
    assert iteration.high_minutes == pytest.approx(30, rel=0.1)
    update = 60 * iteration.low_minutes - 32_768 / 60 - 60
    assert update == pytest.approx(280, rel=0.1)
    assert r1_plan.times.days == pytest.approx(
        (3000 * iteration.low_minutes / 1440, 3000 * iteration.high_minutes / 1440)
    )
    assert r1_plan.times.days == pytest.approx((31, 62), rel=0.1)


def test_a_measured_iteration_replaces_the_estimate(plan_r1: PlanWith) -> None:
    iteration = plan_r1("run.expected_rollout_minutes=22").times.iteration
    assert iteration is not None
    assert (iteration.low_minutes, iteration.high_minutes, iteration.measured) == (22, 22, True)


def test_a_rehearsal_has_no_estimate(rehearsal_plan: Plan) -> None:
    assert rehearsal_plan.times.iteration is None
    assert rehearsal_plan.times.days is None


def test_host_adam_moves_1_3_terabytes_a_step(r1_plan: Plan) -> None:
    step = r1_plan.times.host_adam
    assert step is not None
    assert step.traffic_bytes == pytest.approx(28 * 46.5e9, rel=1e-3)
    assert step.traffic_bytes == pytest.approx(1.3e12, rel=0.01)


def test_seconds_of_host_adam_are_a_range_and_count_in_an_iteration(plan_r1: PlanWith, r1_plan: Plan) -> None:
    step = r1_plan.times.host_adam
    assert step is not None and step.seconds is not None
    assert step.seconds == pytest.approx((1.3e12 / 400e9, 1.3e12 / 78.5e9), rel=0.01)
    assert "3.3 to 16.6 s" in " ".join(render_plan(r1_plan).split())
    with_it, without = r1_plan.times.iteration, plan_r1(*ON_GPUS).times.iteration
    assert with_it is not None and without is not None
    assert 60 * (with_it.low_minutes - without.low_minutes) == pytest.approx(4 * step.seconds[0])
    assert 60 * (with_it.high_minutes - without.high_minutes) == pytest.approx(4 * step.seconds[1])


def test_optimizer_states_on_gpus_and_rehearsals_have_no_seconds_of_host_adam(
    plan_r1: PlanWith, rehearsal_plan: Plan
) -> None:
    assert plan_r1(*ON_GPUS).times.host_adam is None
    step = rehearsal_plan.times.host_adam
    assert step is None or step.seconds is None


def test_one_dispatch_to_the_experts(r1_plan: Plan) -> None:
    dispatch = r1_plan.dispatch
    assert dispatch.bytes_per_gpu == 16_384 // 8 * 8 * 7168 * 2 == pytest.approx(235e6, rel=1e-3)
    assert dispatch.remote_share == 24 / 32
    assert dispatch.remote_copies == 8 * 0.75
    assert dispatch.deduplicated_copies == 3


def test_the_whole_run_in_gpu_hours_and_attempts(plan_r1: PlanWith) -> None:
    plan = plan_r1("run.expected_rollout_minutes=60", "rollout.num_rollout=100", "slurm.time_limit=1440")
    # Of each day a start (reading the commit of 470 s among it) and the signal's 768 s are lost; 23 iterations fit.
    idle_hours = (plan.times.start_s + 768) / 3600
    assert 24 - idle_hours > 23
    whole = plan.times.whole_run
    assert whole is not None
    assert whole.attempts == (5, 5)  # 4 * 23 = 92 < 100
    assert whole.gpu_hours[0] == whole.gpu_hours[1] == pytest.approx(128 * (100 + 5 * idle_hours))
    assert "in 5 attempts of 24 h one after another" in " ".join(render_plan(plan).split())


def test_a_run_that_fits_into_one_attempt_is_one(plan_r1: PlanWith) -> None:
    whole = plan_r1("run.expected_rollout_minutes=20", "rollout.num_rollout=60").times.whole_run
    assert whole is not None and whole.attempts == (1, 1)


def test_what_an_attempt_may_not_hold_is_not_counted_in_attempts(plan_r1: PlanWith) -> None:
    assert plan_r1("slurm.time_limit=45").times.whole_run is None  # start, signal and 27 minutes: more than that
