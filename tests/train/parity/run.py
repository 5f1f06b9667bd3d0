"""The trainer on so many processes: what it computed, put together again under the names of the checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from r1hpc.checkpoint.boxes import Box
from r1hpc.config.training import GrpoConfig, OptimizerConfig, PerfConfig
from r1hpc.model.compat import Device
from r1hpc.model.settings import TrainSettings
from r1hpc.plan.model_shape import model_shape
from r1hpc.train.actor import TrainActor
from r1hpc.train.checkpoint.pieces import held_model
from r1hpc.train.optimizer import ParamShard
from r1hpc.train.schedule import schedule
from r1hpc.train.settings import TrainerConfig
from r1hpc.train.step import StepInputs
from r1hpc.train.update_stats import UpdateStats
from r1hpc.types import Sample
from tests.forked_ranks import fork_ranks, join_gloo

DEADLINE_S = 120.0
Result = TypeVar("Result")


@dataclass(frozen=True)
class Models:
    """The policy and the reference, each converted."""

    policy: Path
    reference: Path
    hugging_face: Mapping[str, Any]


@dataclass(frozen=True)
class Grid:
    """Sizes of the parallel groups; dp copies of tp * pp * cp processes."""

    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    dp: int = 1
    first_layers: int | None = None
    last_layers: int | None = None

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.cp * self.dp

    @property
    def name(self) -> str:
        sizes = {"tp": self.tp, "pp": self.pp, "cp": self.cp, "ep": self.ep, "dp": self.dp}
        return "-".join(f"{axis}{size}" for axis, size in sizes.items() if size > 1) or "one"


@dataclass(frozen=True)
class Case:
    """One way to run the trainer."""

    grid: Grid = Grid()
    grpo: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    recompute: bool = False
    max_tokens: int | None = 100
    """Null: one sample a micro-batch."""
    temperature: float = 1.0
    samples_per_step: int = 8
    steps: int = 1
    dtype: torch.dtype = torch.float32
    device: Device = "cpu"

    def config(self, hugging_face: Mapping[str, Any]) -> TrainerConfig:
        grid = self.grid
        perf = PerfConfig(
            tensor_model_parallel_size=grid.tp,
            sequence_parallel=grid.tp > 1,
            pipeline_model_parallel_size=grid.pp,
            context_parallel_size=grid.cp,
            expert_model_parallel_size=grid.ep,
            decoder_first_pipeline_num_layers=grid.first_layers,
            decoder_last_pipeline_num_layers=grid.last_layers,
            recompute_granularity="full" if self.recompute else None,
            recompute_method="uniform" if self.recompute else None,
            recompute_num_layers=1 if self.recompute else None,
            use_dynamic_batch_size=self.max_tokens is not None,
            max_tokens_per_gpu=self.max_tokens,
            log_probs_chunk_size=16,
        )
        settings = TrainSettings(
            dtype=self.dtype,
            device=self.device,
            recompute_granularity=perf.recompute_granularity,
            recompute_method=perf.recompute_method,
            recompute_num_layers=perf.recompute_num_layers,
        )
        # Adam's epsilon keeps gradients that are nearly zero from being steps of a full learning rate, by their sign.
        optimizer = {"lr": 1e-3, "adam_eps": 1e-4, "optimizer_cpu_offload": True} | dict(self.optimizer)
        return TrainerConfig(
            hugging_face=hugging_face,
            shape=model_shape(hugging_face, Path("config.json")),
            perf=perf,
            grpo=GrpoConfig(**self.grpo),
            optimizer=OptimizerConfig(**{"use_precision_aware_optimizer": True, **optimizer}),
            model=settings,
            temperature=self.temperature,
            samples_per_step=self.samples_per_step,
            steps_per_rollout=self.steps,
            num_rollout=10,
            balance_data=True,
            seed=1,
        )


@dataclass(frozen=True)
class Gradient:
    """Of one step, before the optimizer took it."""

    metrics: Mapping[str, float]
    tensors: Mapping[str, Tensor]


@dataclass(frozen=True)
class Updated:
    """After an update."""

    stats: UpdateStats
    tensors: Mapping[str, Tensor]
    """Masters."""


Part = tuple[str, tuple[int, ...], Box, Tensor]
"""Key, shape of the whole, box of it, the box's elements."""


def gradient(case: Case, models: Models, samples: Sequence[Sample], scratch: Path) -> Gradient:
    """The gradient of the first step, with log-probs of the reference and of the policy as it is."""

    def work(actor: TrainActor) -> tuple[Mapping[str, float], list[Part]]:
        return gradient_parts(actor, samples)

    ranks = on_every_rank(case, models, scratch, work)
    assert len({tuple(sorted(metrics.items())) for metrics, _ in ranks}) == 1  # every rank has the same numbers
    return Gradient(ranks[0][0], assemble([part for _, parts in ranks for part in parts]))


def gradient_parts(actor: TrainActor, samples: Sequence[Sample]) -> tuple[Mapping[str, float], list[Part]]:
    """This rank's share of it."""
    steps = schedule(samples, actor.config)
    ref = actor._reference_logprobs(steps, 0)
    actor._hold("actor")
    old = actor._logprobs(steps)
    inputs = StepInputs(actor._advantages(samples), old[0], ref[0])
    metrics = actor.stepper.accumulate(steps[0].micro_batches, inputs)
    return metrics, list(_parts(actor, _gradient_of))


def update(case: Case, models: Models, samples: Sequence[Sample], scratch: Path) -> Updated:
    """The first update of a run."""
    return updated(case, models, samples, 0, scratch, lambda actor: None)


def updated(
    case: Case,
    models: Models,
    samples: Sequence[Sample],
    rollout_id: int,
    scratch: Path,
    prepare: Callable[[TrainActor], None],
) -> Updated:
    """An update by actors that were prepared for it."""

    def work(actor: TrainActor) -> tuple[UpdateStats, list[Part]]:
        prepare(actor)
        stats = actor.update(samples, rollout_id)
        return stats, list(_parts(actor, lambda shard: shard.master))

    ranks = on_every_rank(case, models, scratch, work)
    return Updated(ranks[0][0], assemble([part for _, parts in ranks for part in parts]))


def on_every_rank(case: Case, models: Models, scratch: Path, work: Callable[[TrainActor], Result]) -> list[Result]:
    """What `work` returns on each rank, whose actor has the models' weights."""
    rendezvous = scratch / f"rendezvous-{case.grid.name}"
    rendezvous.unlink(missing_ok=True)

    def on_rank(rank: int) -> Result:
        join_gloo(rank, case.grid.world_size, rendezvous, DEADLINE_S)
        result = work(loaded_actor(case, models))
        # A rank that leaves while others still make their connections would take those down.
        dist.barrier()
        return result

    return fork_ranks(on_rank, case.grid.world_size, DEADLINE_S)


def loaded_actor(case: Case, models: Models) -> TrainActor:
    """An actor with the policy's weights and the reference's; torch.distributed is up."""
    actor = TrainActor(case.config(models.hugging_face))
    actor.load_reference(models.reference)
    actor.load(models.policy)
    return actor


def assemble(parts: Sequence[Part]) -> dict[str, Tensor]:
    """Whole tensors of the parts of all ranks; copies of one part must be equal, and nothing may be missing."""
    whole: dict[str, Tensor] = {}
    for key, shape, box, values in parts:
        tensor = whole.setdefault(key, torch.full(shape, torch.nan))
        place = tensor[tuple(slice(begin, end) for begin, end in zip(box.offset, box.end, strict=True))]
        known = ~place.isnan()
        assert torch.allclose(place[known], values[known], rtol=1e-5, atol=1e-7), f"{key}: copies differ"
        place.copy_(values)
    assert whole
    holes = [key for key, tensor in whole.items() if tensor.isnan().any()]
    assert not holes, f"not whole: {holes}"
    return whole


def worst(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest difference relative to the largest value of its tensor, and which tensor that is."""
    assert found.keys() == expected.keys()
    errors = {
        key: float((found[key] - expected[key]).abs().max() / expected[key].abs().max().clamp(min=1e-12))
        for key in expected
    }
    key = max(errors, key=errors.__getitem__)
    return errors[key], key


def _parts(actor: TrainActor, values_of: Callable[[ParamShard], Tensor]) -> Iterator[Part]:
    held = held_model(actor.model)
    for shard in actor.optimizer.shards():
        values = values_of(shard)
        for run in held.parameters[shard.name].runs(shard.begin, shard.end):
            flat = values[run.begin - shard.begin : run.end - shard.begin]
            yield run.key, run.global_shape, run.box, flat.reshape(run.box.sizes).float().cpu().clone()


def _gradient_of(shard: ParamShard) -> Tensor:
    gradient: Tensor = shard.param.main_grad  # type: ignore[attr-defined]
    return gradient.view(-1)[shard.begin : shard.end]
