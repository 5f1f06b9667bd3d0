"""The schedule against Megatron's own scheduler, and its state across a resume."""

from __future__ import annotations

import json
import types

import pytest
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from r1hpc.config.training import OptimizerConfig
from r1hpc.train.learning_rate import LearningRate, Schedule, ScheduleError, Style

COSINE = Schedule(peak=2e-6, minimum=5e-7, style="cosine", warmup_steps=4, total_steps=20)


@pytest.mark.parametrize("warmup", [0, 1, 5])
@pytest.mark.parametrize("style", ["constant", "linear", "cosine"])
def test_every_step_has_megatrons_learning_rate(style: Style, warmup: int) -> None:
    schedule = Schedule(peak=3e-6, minimum=2e-7, style=style, warmup_steps=warmup, total_steps=17)
    group = {"max_lr": 3e-6, "min_lr": 2e-7, "params": [], "lr": 0.0}
    megatron = OptimizerParamScheduler(
        types.SimpleNamespace(param_groups=[group]),
        init_lr=0.0,
        max_lr=3e-6,
        min_lr=2e-7,
        lr_warmup_steps=warmup,
        lr_decay_steps=17,
        lr_decay_style=style,
        start_wd=0.1,
        end_wd=0.1,
        wd_incr_steps=17,
        wd_incr_style="constant",
    )
    for step in range(21):
        assert schedule.at(step) == pytest.approx(group["lr"], rel=1e-12, abs=1e-18), step
        megatron.step(1)


def test_the_schedule_by_hand() -> None:
    # warm-up in quarters; half way of the decay, after 4 + 8 steps, the mean of peak and minimum
    assert [COSINE.at(step) for step in range(5)] == pytest.approx([0, 5e-7, 1e-6, 1.5e-6, 2e-6])
    assert COSINE.at(12) == pytest.approx(1.25e-6)
    assert (COSINE.at(20), COSINE.at(1000)) == pytest.approx((5e-7, 5e-7))
    linear = Schedule(peak=1.0, minimum=0.0, style="linear", warmup_steps=0, total_steps=4)
    assert [linear.at(step) for step in range(5)] == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


def test_the_recipes_rate_is_constant_from_the_first_step() -> None:
    config = OptimizerConfig()
    schedule = Schedule.of(config, total_steps=10)
    assert {schedule.at(step) for step in range(100)} == {1e-6}


def test_a_resumed_run_goes_on_at_the_rate_it_would_have_had() -> None:
    whole = LearningRate(COSINE)
    rates = []
    for step in range(20):
        rates.append(whole.value)
        whole.advance(step + 1)
    half = LearningRate(COSINE)
    for step in range(9):
        half.advance(step + 1)
    resumed, notices = LearningRate.resumed(json.loads(json.dumps(half.state())), COSINE)
    assert notices == []
    rest = []
    for step in range(9, 20):
        rest.append(resumed.value)
        resumed.advance(step + 1)
    assert rest == rates[9:]


def test_the_checkpoint_wins_over_the_configuration_and_each_difference_is_said() -> None:
    saved = LearningRate(COSINE, step=7)
    configured = Schedule(peak=1e-5, minimum=5e-7, style="linear", warmup_steps=4, total_steps=40)
    resumed, notices = LearningRate.resumed(saved.state(), configured)
    assert (resumed.schedule, resumed.step) == (COSINE, 7)
    assert notices == [
        "learning rate: peak is 2e-06 as in the checkpoint, not 1e-05 as configured",
        "learning rate: style is cosine as in the checkpoint, not linear as configured",
        "learning rate: total_steps is 20 as in the checkpoint, not 40 as configured",
    ]


def test_a_step_counted_twice_or_not_at_all_is_refused() -> None:
    rate = LearningRate(COSINE, step=7)
    with pytest.raises(ScheduleError, match=r"optimizer has done 9 steps, the learning rate's schedule 7 \+ 1 = 8"):
        rate.advance(9)
    with pytest.raises(ScheduleError):
        rate.advance(7)
    rate.advance(8)
    assert rate.step == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_steps": 20}, "of 20 optimizer steps 20 are warm-up"),
        ({"minimum": 1.0}, "min_lr is 1.0, lr 2e-06"),
        ({"style": "wsd"}, '"wsd" of the learning rate is none of constant, linear, cosine'),
    ],
)
def test_a_schedule_that_is_none_is_refused(change: dict[str, object], message: str) -> None:
    values = LearningRate(COSINE).state() | change
    del values["step"]
    with pytest.raises(ScheduleError, match=message):
        Schedule(**values)


def test_a_state_with_other_values_is_refused() -> None:
    state = LearningRate(COSINE).state()
    state["num_samples"] = 512
    with pytest.raises(ScheduleError, match="num_samples"):
        LearningRate.resumed(state, COSINE)
