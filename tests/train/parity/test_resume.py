"""Saved at one layout and resumed at another, training takes the step that it would have taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from r1hpc.train.actor import TrainActor
from r1hpc.types import Sample
from tests.train.parity.run import Case, Grid, Models, Updated, on_every_rank, updated, worst

NEXT_STEP = 1e-6
GRPO = {"use_kl_loss": True, "kl_loss_coef": 0.05, "kl_loss_type": "low_var_kl"}
# A rate that moves with the steps, so that one that begins anew would show.
FALLING = {"lr_decay_style": "linear", "lr_warmup_iters": 1}
CASE = Case(Grid(tp=2, pp=2, ep=2, last_layers=2), grpo=GRPO, optimizer=FALLING, steps=1)


def first_steps(case: Case, models: Models, samples: list[Sample], scratch: Path, directory: Path) -> None:
    """Two updates, each of 8 samples, then a checkpoint."""

    def work(actor: TrainActor) -> None:
        for rollout in range(2):
            actor.update(_rollout(samples, rollout), rollout)
        actor.sleep()
        actor.begin_save(directory, iteration=1)
        actor.finish_save()

    on_every_rank(case, models, scratch, work)


def _rollout(samples: list[Sample], number: int) -> list[Sample]:
    return samples[8 * number : 8 * number + 8]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def saved(models: Models, samples: list[Sample], scratch: Path) -> Path:
    directory = scratch / "iter_0000001"
    first_steps(CASE, models, samples, scratch, directory)
    return directory


@pytest.fixture(scope="module")
def uninterrupted(models: Models, samples: list[Sample], scratch: Path) -> Updated:
    """The third update of a run that nothing stopped."""

    def two_updates(actor: TrainActor) -> None:
        for rollout in range(2):
            actor.update(_rollout(samples, rollout), rollout)

    return updated(CASE, models, _rollout(samples, 2), 2, scratch, two_updates)


@pytest.mark.parametrize(
    "grid",
    [CASE.grid, Grid(), Grid(pp=4, first_layers=2), Grid(ep=4, dp=4), Grid(tp=2, cp=2, ep=4)],
    ids=lambda grid: grid.name,
)
def test_the_next_step_is_the_same_at_another_layout(
    grid: Grid, models: Models, samples: list[Sample], saved: Path, uninterrupted: Updated, scratch: Path
) -> None:
    def resume(actor: TrainActor) -> None:
        state = actor.resume(saved)
        assert (state.iteration, state.optimizer_steps) == (1, 2)

    found = updated(replace(CASE, grid=grid), models, _rollout(samples, 2), 2, scratch, resume)
    (step,), (expected,) = found.stats.steps, uninterrupted.stats.steps
    assert step.step == expected.step == 3
    assert step.learning_rate == expected.learning_rate > 0
    assert worst(found.tensors, uninterrupted.tensors) < (NEXT_STEP, "")
