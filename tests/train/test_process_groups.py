"""A trainer whose process groups are destroyed in sleep and made again computes as one that keeps them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.transformer.moe import fused_a2a
from torch import Tensor

from r1hpc.errors import R1hpcError
from r1hpc.train.actor import TrainActor
from r1hpc.train.checkpoint.ranks import current_layout
from r1hpc.train.gradients import GradientError
from r1hpc.types import Sample
from tests.train.parity.run import Grid, Models, on_every_rank
from tests.train.parity.samples import make_samples
from tests.train.process_groups_soak import RebuildCase, live
from tests.train.tiny_models import convert_tiny_models

GRID = Grid(tp=2, pp=2, last_layers=2)
CYCLES = 50
SLACK_MIB = 40.0
"""By which a process may grow, whose threads come and go. The soak says more: 1,000 cycles add 3 MiB."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return convert_tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def samples(models: Models) -> list[Sample]:
    return make_samples(8, models.hugging_face["vocab_size"])


def test_rebuilt_groups_compute_as_kept_ones_and_leave_nothing_behind(models: Models, samples: list[Sample]) -> None:
    rebuilt = live(GRID, models, samples, CYCLES, rebuild=True)
    kept = live(GRID, models, samples, 1, rebuild=False)
    for one, other in zip(rebuilt, kept, strict=True):
        assert [step.metrics for step in one.first.steps] == [step.metrics for step in other.first.steps]
        assert [step.metrics for step in one.last.steps] == [step.metrics for step in other.last.steps]
        assert [step.grad_norm for step in one.last.steps] == [step.grad_norm for step in other.last.steps]
        assert one.weights.keys() == other.weights.keys()
        assert [name for name in one.weights if not torch.equal(one.weights[name], other.weights[name])] == []
        assert torch.equal(one.random_state, other.random_state)

        before, after = one.kept
        assert (after.descriptors, after.threads) == (before.descriptors, before.threads)
        assert (after.store_keys, after.registered) == (before.store_keys, before.registered)
        assert after.resident_mib < before.resident_mib + SLACK_MIB


def test_a_sleeping_trainer_knows_its_place_saves_and_uses_no_group(
    models: Models, samples: list[Sample], tmp_path: Path
) -> None:
    def work(actor: TrainActor) -> tuple[dict[str, int], dict[str, int], str, int]:
        awake = current_layout()
        actor.update(samples, 0)
        actor.sleep()
        asleep = current_layout()
        actor.begin_save(tmp_path / "saved", iteration=0)
        actor.finish_save()
        with pytest.raises(ValueError, match="not initialized") as refused:
            dist.all_reduce(torch.ones(1), group=parallel_state.get_tensor_model_parallel_group())
        actor.wake()
        actor.resume(tmp_path / "saved")
        return awake, asleep, str(refused.value), actor.update(samples, 1).steps[0].step

    for awake, asleep, refused, step in on_every_rank(RebuildCase(GRID), models, tmp_path, work):
        assert asleep == awake == {"world": 4, "tp": 2, "pp": 2, "cp": 1, "ep": 1, "etp": 1}
        assert "TENSOR_MODEL_PARALLEL_GROUP, destroyed while the trainer sleeps" in refused
        assert step == 2


def test_a_trainer_whose_update_failed_can_sleep_and_train_again(
    models: Models, samples: list[Sample], tmp_path: Path
) -> None:
    def work(actor: TrainActor) -> float:
        param = next(param for name, param in actor.model.named_parameters() if "linear_proj" in name)
        hook = param.register_hook(lambda gradient: gradient * torch.nan)
        with pytest.raises(GradientError):
            actor.update(samples, 0)
        hook.remove()
        actor.sleep()
        return actor.update(samples, 0).steps[0].grad_norm

    for norm in on_every_rank(RebuildCase(Grid(tp=2)), models, tmp_path, work):
        assert norm > 0


class Cache:
    """Something that keeps a group without anybody's knowledge."""

    def __init__(self) -> None:
        self.group = parallel_state.get_pipeline_model_parallel_group()


def test_who_keeps_a_group_is_named_on_every_rank(models: Models, tmp_path: Path) -> None:
    def work(actor: TrainActor) -> str:
        cache = Cache() if dist.get_rank() == 1 else None
        with pytest.raises(R1hpcError) as refused:
            actor.sleep()
        del cache
        return str(refused.value)

    for said in on_every_rank(RebuildCase(Grid(tp=2)), models, tmp_path, work):
        assert "rank 1: destroyed process groups are still held by" in said
        assert "Cache.group (PIPELINE_MODEL_PARALLEL_GROUP)" in said


def summing(group: dist.ProcessGroup) -> Callable[[Tensor], Tensor]:
    """A function that has a group in its closure."""

    def total(value: Tensor) -> Tensor:
        dist.all_reduce(value, group=group)
        return value

    return total


class Buffer:
    """What DeepEP's knows of its group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group


def test_the_buffer_of_deepep_stays_and_is_given_the_new_group(models: Models, tmp_path: Path) -> None:
    def work(actor: TrainActor) -> tuple[bool, str, bool]:
        before = parallel_state.get_expert_model_parallel_group()
        buffer = fused_a2a._buffer = Buffer(before)
        del before
        actor.sleep()
        asleep = type(buffer.group).__name__
        actor.wake()
        same, now = fused_a2a._buffer is buffer, buffer.group is parallel_state.get_expert_model_parallel_group()
        fused_a2a._buffer = None
        return same, asleep, now

    for same, asleep, now in on_every_rank(RebuildCase(Grid(tp=2, ep=2)), models, tmp_path, work):
        assert same and now and asleep == "AbsentGroup"


def test_a_wake_that_fails_on_one_rank_can_be_followed_by_sleep(
    models: Models, samples: list[Sample], tmp_path: Path
) -> None:
    def work(actor: TrainActor) -> tuple[bool, bool, float]:
        actor.update(samples, 0)
        actor.sleep()
        if dist.get_rank() == 1:
            with pytest.MonkeyPatch.context() as patched, pytest.raises(MemoryError):
                patched.setattr(actor.weights, "tensors", refuse)
                actor.wake()
        else:
            actor.wake()
        half_way = actor.asleep
        actor.sleep()
        return half_way, actor.asleep, actor.update(samples, 1).steps[0].grad_norm

    found = on_every_rank(RebuildCase(Grid(tp=2)), models, tmp_path, work)
    assert [half_way for half_way, _, _ in found] == [False, False]
    assert all(asleep and norm > 0 for _, asleep, norm in found)


def test_memory_that_one_rank_cannot_give_is_an_error_on_all_and_sleep_may_come_again(
    models: Models, tmp_path: Path
) -> None:
    def work(actor: TrainActor) -> str:
        with pytest.MonkeyPatch.context() as patched, pytest.raises(R1hpcError) as said:
            if dist.get_rank() == 1:
                patched.setattr(actor.memory, "_synchronize", refuse)
            actor.sleep()
        actor.sleep()
        assert actor.asleep
        return str(said.value)

    for said in on_every_rank(RebuildCase(Grid(tp=2)), models, tmp_path, work):
        assert "no room" in said


def refuse(*_: object) -> NoReturn:
    raise MemoryError("no room")


def test_groups_are_found_wherever_the_model_keeps_them(models: Models, tmp_path: Path) -> None:
    def work(actor: TrainActor) -> list[Tensor]:
        actor.model.in_closure = summing(parallel_state.get_tensor_model_parallel_group())
        actor.model.in_list = {"groups": [parallel_state.get_tensor_model_parallel_group()]}
        actor.sleep()
        actor.wake()
        (listed,) = actor.model.in_list["groups"]
        assert listed is parallel_state.get_tensor_model_parallel_group()
        return [actor.model.in_closure(torch.tensor([dist.get_rank() + 1]))]

    for sums in on_every_rank(RebuildCase(Grid(tp=2)), models, tmp_path, work):
        assert sums == [torch.tensor([3])]
