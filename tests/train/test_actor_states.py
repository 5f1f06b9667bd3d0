"""What an actor holds after calls in any order, and after an update that stopped half way."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from r1hpc.checkpoint.conversion import make_slices, plan_conversion
from r1hpc.checkpoint.convert import convert_all
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.errors import R1hpcError
from r1hpc.rehearsal.tiny_model import write_tiny_model
from r1hpc.train.actor import TrainActor
from r1hpc.train.gradients import GradientError
from r1hpc.types import Sample
from tests.forked_ranks import fork_ranks, join_gloo
from tests.train.parity.run import DEADLINE_S, Case, Grid, Models, on_every_rank
from tests.train.parity.samples import make_samples

KL = {"use_kl_loss": True, "kl_loss_coef": 0.05}
TWO_STEPS = Case(Grid(tp=2, ep=2), grpo=KL, samples_per_step=4, steps=2)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A policy and a reference, converted."""
    base = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("policy", "ref")):
        write_tiny_model(base / name, seed=seed, shards=1, mtp=False, fp8=False)
        source = open_checkpoint(base / name)
        slices = make_slices(source.shape.num_layers, 1, None, None, 1, "layout")
        convert_all(plan_conversion(source, base / f"{name}-torch_dist", slices, 1), 1, lambda line: None)
    values = json.loads((base / "policy/config.json").read_text(encoding="utf-8"))
    return Models(base / "policy-torch_dist", base / "ref-torch_dist", values)


@pytest.fixture(scope="module")
def samples(models: Models) -> list[Sample]:
    return make_samples(8, models.hugging_face["vocab_size"])


def refusal(action: Callable[[], object]) -> str:
    """What a trainer says that refuses it."""
    with pytest.raises(R1hpcError) as refused:
        action()
    return str(refused.value)


def fail_at_step(actor: TrainActor, number: int) -> None:
    """Let rank 0's gradient be NaN in this optimizer step, counted from 1, and in none after it."""
    if dist.get_rank() == 0:
        param = next(param for name, param in actor.model.named_parameters() if "linear_proj" in name)

        def spoil(grad: Any) -> Any:
            return torch.full_like(grad, torch.nan) if actor.optimizer.num_steps == number - 1 else grad

        param.register_hook(spoil)


def test_an_update_that_stopped_between_its_steps_is_neither_saved_nor_built_upon(
    models: Models, samples: list[Sample], tmp_path: Path
) -> None:
    saved = tmp_path / "iter_0000000"

    def work(actor: TrainActor) -> list[str]:
        actor.begin_save(saved, 0)
        actor.finish_save()
        expected = [shard.master.clone() for shard in actor.optimizer.shards()]
        fail_at_step(actor, 2)
        with pytest.raises(GradientError):
            actor.update(samples, 1)
        said = [
            refusal(lambda: actor.begin_save(tmp_path / "iter_0000001", 1)),
            refusal(lambda: actor.update(samples, 1)),
        ]
        actor.resume(saved)
        for shard, master in zip(actor.optimizer.shards(), expected, strict=True):
            assert torch.equal(shard.master, master)
        return said

    for first, second in on_every_rank(TWO_STEPS, models, tmp_path, work):
        assert "has done 1 optimizer steps, the host's copy of the weights 0" in first
        assert first == second


def test_an_update_that_stopped_at_its_first_step_may_be_followed_by_another(
    models: Models, samples: list[Sample], tmp_path: Path
) -> None:
    def work(actor: TrainActor) -> tuple[list[float], list[float]]:
        wanted = [step.metrics["loss"] for step in actor.update(samples, 0).steps]
        actor.load(models.policy)
        param = next(param for name, param in actor.model.named_parameters() if "linear_proj" in name)
        hook = param.register_hook(lambda grad: torch.full_like(grad, torch.nan))
        with pytest.raises(GradientError):
            actor.update(samples, 0)
        hook.remove()
        return wanted, [step.metrics["loss"] for step in actor.update(samples, 0).steps]

    for wanted, found in on_every_rank(TWO_STEPS, models, tmp_path, work):
        assert found == wanted


def test_weights_loaded_again_are_trained_as_at_the_first_time(
    models: Models, samples: list[Sample], tmp_path: Path
) -> None:
    def work(actor: TrainActor) -> tuple[list[Any], list[Any]]:
        def three_steps() -> list[Any]:
            steps = [step for rollout in range(2) for step in actor.update(samples, rollout).steps]
            return [(step.step, step.learning_rate, step.grad_norm, dict(step.metrics)) for step in steps]

        first = three_steps()
        actor.load(models.policy)
        return first, three_steps()

    case = replace(TWO_STEPS, grid=Grid(), optimizer={"lr_decay_style": "linear", "lr_warmup_iters": 2})
    ((first, second),) = on_every_rank(case, models, tmp_path, work)
    assert first == second


def test_a_reference_loaded_late_is_not_trained(models: Models, samples: list[Sample], tmp_path: Path) -> None:
    def work(late: bool) -> Any:
        def update(actor: TrainActor) -> list[dict[str, float]]:
            if late:
                actor.load_reference(models.reference)
            return [dict(step.metrics) for step in actor.update(samples, 1).steps]

        # At this interval the second rollout has no pass of the reference, whose end would bring the actor back.
        grpo = {"use_kl_loss": True, "ref_logprob_interval": 2}
        return on_every_rank(replace(TWO_STEPS, grid=Grid(), grpo=grpo), models, tmp_path, update)

    assert work(late=True) == work(late=False)


def test_nothing_is_loaded_into_a_sleeping_actor(models: Models, tmp_path: Path) -> None:
    saved = tmp_path / "iter_0000000"

    def work(actor: TrainActor) -> list[str]:
        actor.begin_save(saved, 0)
        actor.finish_save()
        actor.sleep()
        actions = (actor.load_reference, actor.load, actor.resume)
        sources = (models.reference, models.policy, saved)
        said = [refusal(lambda a=a, s=s: a(s)) for a, s in zip(actions, sources, strict=True)]  # type: ignore[misc]
        actor.wake()
        actor.resume(saved)
        return said

    (said,) = on_every_rank(Case(), models, tmp_path, work)
    assert all("wake" in line for line in said)


def graphs_kept(actor: TrainActor) -> int:
    """Tensors with a graph that the token dispatchers hold."""
    dispatchers = [module.token_dispatcher for module in actor.model.modules() if hasattr(module, "token_dispatcher")]
    return sum(getattr(value, "grad_fn", None) is not None for each in dispatchers for value in vars(each).values())


def test_a_sleeping_actor_keeps_nothing_of_its_last_micro_batch(
    models: Models, samples: list[Sample], tmp_path: Path
) -> None:
    def work(actor: TrainActor) -> tuple[int, int]:
        actor.update(samples[:4], 0)
        awake = graphs_kept(actor)
        actor.sleep()
        return awake, graphs_kept(actor)

    ((awake, asleep),) = on_every_rank(Case(samples_per_step=4), models, tmp_path, work)
    assert awake > 0
    assert asleep == 0


def test_a_resumed_actor_sleeps_and_trains_on(models: Models, samples: list[Sample], tmp_path: Path) -> None:
    saved = tmp_path / "iter_0000000"

    def work(actor: TrainActor) -> list[list[float]]:
        actor.update(samples, 0)
        actor.begin_save(saved, 0)
        actor.finish_save()
        losses = []
        for sleeps in (False, True):
            actor.resume(saved)
            if sleeps:
                actor.sleep()
                actor.wake()
            losses.append([step.metrics["loss"] for step in actor.update(samples, 1).steps])
        return losses

    for awake, slept in on_every_rank(replace(TWO_STEPS, dtype=torch.bfloat16), models, tmp_path, work):
        assert slept == awake


def test_nothing_is_loaded_over_what_a_save_reads(models: Models, tmp_path: Path) -> None:
    saved = tmp_path / "iter_0000000"

    def work(actor: TrainActor) -> list[str]:
        actor.begin_save(saved, 0)
        actor.finish_save()
        actor.begin_save(tmp_path / "iter_0000001", 1)
        said = [refusal(lambda: actor.load(models.policy)), refusal(lambda: actor.resume(saved))]
        actor.finish_save()
        actor.resume(saved)
        return said

    (said,) = on_every_rank(Case(), models, tmp_path, work)
    assert all("finish_save first" in line for line in said)


def test_an_actor_without_weights_of_its_own_does_not_train_the_reference(
    models: Models, samples: list[Sample], tmp_path: Path
) -> None:
    def on_rank(rank: int) -> list[str]:
        join_gloo(rank, 1, tmp_path / "rendezvous", DEADLINE_S)
        actor = TrainActor(replace(TWO_STEPS, grid=Grid()).config(models.hugging_face))
        actor.load_reference(models.reference)
        return [refusal(lambda: actor.update(samples, 0)), refusal(lambda: actor.begin_save(tmp_path / "a", 0))]

    (said,) = fork_ranks(on_rank, 1, DEADLINE_S)
    assert all("load or resume first" in line for line in said)


def test_a_checkpoint_that_broke_while_it_was_read_leaves_nothing_to_train(
    models: Models, samples: list[Sample], tmp_path: Path
) -> None:
    saved = tmp_path / "iter_0000000"

    def work(actor: TrainActor) -> tuple[str, str, int]:
        actor.begin_save(saved, 0)
        actor.finish_save()
        if dist.get_rank() == 0:
            damage(saved / "__0_0.distcp")
        dist.barrier()
        read = refusal(lambda: actor.resume(saved))
        trained = refusal(lambda: actor.update(samples, 0))
        actor.load(models.policy)
        return read, trained, len(actor.update(samples, 0).steps)

    first, second = on_every_rank(TWO_STEPS, models, tmp_path, work)
    assert first == second
    assert "cannot be read" in first[0]
    assert "load or resume first" in first[1]
    assert first[2] == 2


def damage(file: Path) -> None:
    """Zeros over the middle of a file that keeps its size."""
    size = file.stat().st_size
    with open(file, "r+b") as stream:
        stream.seek(size // 4)
        stream.write(bytes(size // 2))
