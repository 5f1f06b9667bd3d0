"""What an actor refuses, what stops it, and what its results do not depend on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from r1hpc.errors import R1hpcError
from r1hpc.train.actor import TrainActor, TrainerError
from r1hpc.train.gradients import GradientError
from r1hpc.train.samples import SamplesError
from r1hpc.train.schedule import schedule
from r1hpc.train.settings import TrainerConfig
from r1hpc.train.step import StepInputs
from r1hpc.types import Sample
from tests.train.parity.run import Case, Grid, Models, on_every_rank

GRPO = {"use_kl_loss": True, "kl_loss_coef": 0.05, "kl_loss_type": "low_var_kl", "entropy_coef": 0.01}


def shard_gradients(actor: TrainActor, samples: Sequence[Sample]) -> list[Tensor]:
    """What this rank owns of the gradient of a rollout of one step."""
    steps = schedule(samples, actor.config)
    ref, advantages = actor._reference_logprobs(steps, 0), actor._advantages(samples)
    actor._hold("actor")
    actor.stepper.accumulate(steps[0].micro_batches, StepInputs(advantages, [], ref[0]))
    return [main_grad(shard.param).view(-1)[shard.begin : shard.end].clone() for shard in actor.optimizer.shards()]


def main_grad(param: Any) -> Tensor:
    grad: Tensor = param.main_grad
    return grad


@pytest.mark.parametrize("per_token", [False, True], ids=["per sample", "per token"])
@pytest.mark.parametrize("grid", [Grid(), Grid(cp=2, dp=2, ep=2)], ids=lambda grid: grid.name)
def test_order_and_packing_of_the_samples_change_nothing(
    grid: Grid, per_token: bool, models: Models, samples: list[Sample], tmp_path: Path
) -> None:
    def work(actor: TrainActor) -> float:
        expected = shard_gradients(actor, samples[:8])
        most = max(float(values.abs().max()) for values in expected if values.numel())
        worst, drawn = 0.0, numpy.random.default_rng(5)
        for capacity in (40, 64, 100, 180, 400):
            places = drawn.permutation(8)
            shuffled = [replace(samples[place], index=index) for index, place in enumerate(places)]
            perf = actor.config.perf.model_copy(update={"max_tokens_per_gpu": capacity // grid.cp})
            actor.config = replace(actor.config, perf=perf)
            found = shard_gradients(actor, shuffled)
            worst = max(worst, *(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True) if a.numel()))
        return worst / most

    errors = on_every_rank(Case(grid, grpo=GRPO | {"calculate_per_token_loss": per_token}), models, tmp_path, work)
    assert max(errors) < 1e-5


def test_samples_may_come_in_any_order(models: Models, samples: list[Sample], tmp_path: Path) -> None:
    def work(actor: TrainActor) -> bool:
        first = [step.metrics for step in actor.update(samples[:8], 0).steps]
        actor.load(models.policy)
        actor.optimizer.num_steps = actor.learning_rate.step = 0
        return first == [step.metrics for step in actor.update(samples[7::-1], 0).steps]

    assert on_every_rank(Case(), models, tmp_path, work) == [True]


def test_a_nan_in_one_ranks_gradient_stops_all_ranks_and_is_named(
    models: Models, samples: list[Sample], tmp_path: Path
) -> None:
    def work(actor: TrainActor) -> tuple[str, bool]:
        if dist.get_rank() == 2:
            param = next(param for name, param in actor.model.named_parameters() if "linear_proj" in name)
            param.register_hook(lambda grad: torch.full_like(grad, torch.nan))
        before = [shard.master.clone() for shard in actor.optimizer.shards()]
        try:
            actor.update(samples[:8], 0)
        except GradientError as error:
            same = [torch.equal(shard.master, old) for shard, old in zip(actor.optimizer.shards(), before, strict=True)]
            return str(error), all(same)
        return "", False

    grid = Grid(tp=2, pp=2, ep=2, last_layers=2)
    said = on_every_rank(Case(grid), models, tmp_path, work)
    assert len({text for text, _ in said}) == 1
    assert all(unchanged for _, unchanged in said)
    # Rank 2 is the first of stage 1, which begins with layer 3.
    assert "rank 2 (tp 0, pp 1" in said[0][0]
    assert "layer 3, decoder.layers.3.self_attention.linear_proj.weight" in said[0][0]
    assert "rank 0 (" not in said[0][0]


def test_bad_samples_are_refused_with_their_index_before_anything_is_computed(
    models: Models, samples: list[Sample], tmp_path: Path
) -> None:
    good = samples[:8]
    vocab = models.hugging_face["vocab_size"]
    beyond = good[3].tokens.copy()
    beyond[-1] = vocab
    bad = {
        "sample 1: response_len is 0": [replace(good[1], response_len=0)],
        f"sample 3: token {len(beyond) - 1} is {vocab}": [replace(good[3], tokens=beyond)],
        "sample 5: rollout_logprobs has shape [1]": [replace(good[5], rollout_logprobs=numpy.zeros(1, numpy.float32))],
        "sample 6: reward is nan": [replace(good[6], reward=float("nan"))],
    }

    def work(actor: TrainActor) -> list[str]:
        said = []
        for (changed,) in bad.values():
            rollout = [changed if sample.index == changed.index else sample for sample in good]
            with pytest.raises(SamplesError) as refused:
                actor.update(rollout, 0)
            said.append(str(refused.value))
        with pytest.raises(TrainerError) as refused_count:
            actor.update(samples[:9], 0)
        return [*said, str(refused_count.value)]

    (said,) = on_every_rank(Case(), models, tmp_path, work)
    for expected, text in zip([*bad, "9 samples, but the 1 steps of a rollout take 8 each = 8"], said, strict=True):
        assert expected in text


def test_the_reference_is_computed_at_its_interval(models: Models, samples: list[Sample], tmp_path: Path) -> None:
    def work(actor: TrainActor) -> list[bool]:
        return ["kl" in actor.update(samples[:8], rollout).steps[0].metrics for rollout in range(4)]

    case = Case(grpo={"use_kl_loss": True, "ref_logprob_interval": 2})
    assert on_every_rank(case, models, tmp_path, work) == [[True, False, True, False]]


def test_one_step_takes_its_own_pass_for_the_old_logprobs(
    models: Models, samples: list[Sample], tmp_path: Path
) -> None:
    def config(**changes: Any) -> TrainerConfig:
        return Case(**changes).config(models.hugging_face)

    assert not config(steps=1).needs_old_logprobs
    assert config(steps=2).needs_old_logprobs
    assert config(steps=1, grpo={"use_tis": True}).needs_old_logprobs
    assert not config(steps=2, grpo={"use_rollout_logprobs": True}).needs_old_logprobs

    def work(actor: TrainActor) -> dict[str, float]:
        (step,) = actor.update(samples[:8], 0).steps
        return dict(step.metrics)

    ((metrics,)) = on_every_rank(Case(), models, tmp_path, work)
    assert metrics["approx_kl"] == metrics["clip_fraction"] == 0.0


def test_what_a_checkpoint_is_written_from_is_not_changed_meanwhile(
    models: Models, samples: list[Sample], tmp_path: Path
) -> None:
    def work(actor: TrainActor) -> list[str]:
        said = []

        def refused(action: Any) -> None:
            with pytest.raises(R1hpcError) as error:
                action()
            said.append(str(error.value))

        refused(actor.finish_save)
        actor.begin_save(tmp_path / "iter_0000000", 0)
        refused(lambda: actor.update(samples[:8], 0))
        refused(lambda: actor.begin_save(tmp_path / "iter_0000001", 1))
        actor.finish_save()
        actor.update(samples[:8], 0)
        return said

    (said,) = on_every_rank(Case(), models, tmp_path, work)
    assert "begin_save first" in said[0]
    assert "finish_save first" in said[1]
    assert "finish_save first" in said[2]


def test_an_actor_that_slept_computes_what_one_that_did_not_computes(
    models: Models, samples: list[Sample], tmp_path: Path
) -> None:
    def work(sleeps: bool) -> Any:
        def run(actor: TrainActor) -> list[float]:
            losses = []
            for rollout in range(2):
                if sleeps:
                    actor.sleep()
                losses += [step.metrics["loss"] for step in actor.update(samples[:8], rollout).steps]
            return losses

        return on_every_rank(Case(Grid(ep=2, dp=2), grpo=GRPO), models, tmp_path, run)

    assert work(sleeps=True) == work(sleeps=False)
