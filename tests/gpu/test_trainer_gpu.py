"""The trainer on one GPU: the same classes as on the CPU, with cuDNN, grouped products, pinned memory and NCCL."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import DeepseekV3ForCausalLM

from r1hpc.train.actor import TrainActor
from r1hpc.train.collate import gather_responses
from r1hpc.train.schedule import GPU_CHUNK, collate_here
from r1hpc.types import Sample
from tests.train.parity.reference import response_logprobs
from tests.train.parity.run import Case, Models, loaded_actor

HAS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_HOPPER, reason="needs an NVIDIA GPU of compute capability 9.0 or more"),
]

GRPO = {"use_kl_loss": True, "kl_loss_coef": 0.05, "kl_loss_type": "low_var_kl", "use_tis": True}
CASE = Case(device="cuda", grpo=GRPO, steps=3, max_tokens=512)


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    rendezvous = tmp_path_factory.mktemp("world") / "rendezvous"
    dist.init_process_group(
        "nccl", init_method=f"file://{rendezvous}", rank=0, world_size=1, device_id=torch.device("cuda:0")
    )
    yield
    dist.destroy_process_group()


@pytest.fixture
def actor(request: pytest.FixtureRequest, models: Models) -> Iterator[TrainActor]:
    from megatron.core import parallel_state

    made = loaded_actor(replace(CASE, dtype=request.param), models)
    yield made
    made.optimizer.close()
    parallel_state.destroy_model_parallel()


def policy_logprobs(actor: TrainActor, samples: list[Sample]) -> list[Tensor]:
    """[R] of each sample."""
    places = range(len(samples))
    batches = [collate_here(samples, [place], actor.config) for place in places]
    found = []
    for batch, logprobs in zip(batches, actor.passes.logprobs(batches), strict=True):
        aligned = torch.zeros(len(batch.tokens), device=logprobs.device)
        aligned[batch.rows] = logprobs
        (response,) = gather_responses([aligned], samples, batch.samples, GPU_CHUNK)
        found.append(torch.from_numpy(response))
    return found


@pytest.mark.parametrize(
    ("actor", "mean", "most", "of"),
    [(torch.float32, 1e-5, 1e-4, 1.0), (torch.bfloat16, 0.03, 0.3, 0.98)],
    indirect=["actor"],
    ids=["fp32", "bf16"],
)
def test_logprobs_are_those_of_transformers(
    actor: TrainActor,
    mean: float,
    most: float,
    of: float,
    samples: list[Sample],
    transformers_models: dict[str, DeepseekV3ForCausalLM],
) -> None:
    whole = [replace(sample, loss_mask=None) for sample in samples]
    found = torch.cat(policy_logprobs(actor, whole))
    with torch.no_grad():
        expected = torch.cat([response_logprobs(transformers_models["policy"], sample, 1.0)[0] for sample in whole])
    errors = (found - expected).abs()
    assert errors.mean() < mean
    # In bf16 some tokens go to other experts.
    assert errors.quantile(of) < most


@pytest.mark.parametrize("actor", [torch.bfloat16], indirect=True, ids=["bf16"])
def test_an_update_trains_sleeps_and_resumes(actor: TrainActor, samples: list[Sample], tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in actor.weights.tensors("actor").items()}
    stats = actor.update(samples, rollout_id=0)
    assert [step.step for step in stats.steps] == [1, 2, 3]
    assert all(torch.isfinite(torch.tensor([step.grad_norm, step.metrics["loss"]])).all() for step in stats.steps)
    after = actor.weights.tensors("actor")
    assert all(tensor.is_pinned() for tensor in after.values())
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) > len(before) / 2
    actor.optimizer.check_masters()

    held = torch.cuda.memory_allocated()
    actor.sleep()
    assert held - torch.cuda.memory_allocated() >= actor.memory.size_bytes
    actor.begin_save(tmp_path / "iter_0000000", iteration=0)
    actor.finish_save()
    actor.wake()
    second = actor.update(samples, rollout_id=1)

    assert actor.resume(tmp_path / "iter_0000000").optimizer_steps == 3
    again = actor.update(samples, rollout_id=1)
    assert [step.metrics["loss"] for step in again.steps] == pytest.approx(
        [step.metrics["loss"] for step in second.steps], rel=1e-2, abs=1e-3
    )


@pytest.mark.parametrize("actor", [torch.bfloat16], indirect=True, ids=["bf16"])
def test_a_step_of_learning_rate_zero_changes_no_bit(actor: TrainActor, samples: list[Sample]) -> None:
    actor.learning_rate.schedule = replace(actor.learning_rate.schedule, peak=0.0, minimum=0.0)
    before = {name: tensor.clone() for name, tensor in actor.weights.tensors("actor").items()}
    actor.update(samples, rollout_id=0)
    for name, tensor in actor.weights.tensors("actor").items():
        assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8)), name
