"""Ranks that save and load a trainer's state whose every value is known from its place in the global tensors."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from r1hpc.config.training import OptimizerConfig
from r1hpc.model import compat
from r1hpc.model.build import build_model, sharded_state, unloaded
from r1hpc.model.parallel import Layout
from r1hpc.model.settings import TrainSettings
from r1hpc.plan.model_shape import ModelShape, model_shape
from r1hpc.train.checkpoint.box_files import FILE_BYTES
from r1hpc.train.checkpoint.pieces import HeldModel, held_model
from r1hpc.train.checkpoint.plan import SavePlan, plan_save
from r1hpc.train.checkpoint.save import PendingSave, begin_save
from r1hpc.train.checkpoint.trainer_state import TrainerState
from r1hpc.train.host_weights import HostWeights
from r1hpc.train.optimizer import TrainOptimizer, build_optimizer, wrap
from tests.forked_ranks import Result, fork_ranks, join_gloo

DEADLINE_S = 60.0
TINY_R1 = Path(__file__).parents[2] / "configs/models/tiny-r1/config.json"
SIZES = {"num_hidden_layers": 4, "n_routed_experts": 4, "vocab_size": 264, "num_nextn_predict_layers": 0}
SCHEDULE = {"step": 37, "peak": 1e-6, "style": "constant"}
DIGEST = "0123abcd"


@dataclass(frozen=True)
class World:
    """So many ranks in a layout; data parallelism is what is left over."""

    ranks: int = 1
    layout: Layout = field(default_factory=Layout)
    dtype: torch.dtype = torch.float32
    offset: float = 0.0
    """Added to every value, to tell one state from another."""

    def run(self, scratch: Path, work: Callable[[Trainer], Result]) -> list[Result]:
        """What `work` returns on every rank; the weights are NaN, the optimizer's state zero."""
        rendezvous = scratch / "rendezvous"
        rendezvous.unlink(missing_ok=True)

        def on_rank(rank: int) -> Result:
            compat.prepare("cpu")
            join_gloo(rank, self.ranks, rendezvous, DEADLINE_S)
            self.layout.initialize()
            return work(Trainer(self))

        return fork_ranks(on_rank, self.ranks, DEADLINE_S)


class Trainer:
    """What one rank trains: the model in Megatron's buffers, the optimizer, the host copy."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.model: GPTModel = build_model(hugging_face(), world.layout, TrainSettings(dtype=world.dtype))
        self.ddp = wrap(self.model)
        self.optimizer: TrainOptimizer = build_optimizer(self.ddp, OptimizerConfig(), offload=True)
        self.host = HostWeights(self.model)
        self.held: HeldModel = held_model(self.model)

    @cached_property
    def plan(self) -> SavePlan:
        return plan_save(self.held, self.optimizer.shards())

    @torch.no_grad()
    def fill(self) -> None:
        """Give every element its value. Weights go where Megatron's own sharded state dict says that they belong."""
        for box in self._boxes():
            box.data.copy_(expected(box, self.world.offset))
        for shard in self.optimizer.shards():
            for tensor, values in zip(
                (shard.master, shard.exp_avg, shard.exp_avg_sq), states_of_weights(shard.weights), strict=True
            ):
                tensor.copy_(values)
        self.host.save("actor")

    def save(self, directory: Path, iteration: int = 7, file_bytes: int = FILE_BYTES) -> None:
        """Fill, save, wait."""
        self.fill()
        self.begin(directory, iteration, file_bytes).finish()

    def begin(self, directory: Path, iteration: int = 7, file_bytes: int = FILE_BYTES) -> PendingSave:
        state = TrainerState(iteration, 37, SCHEDULE, DIGEST)
        return begin_save(directory, self.plan, self.host.tensors("actor"), state, quiet, file_bytes)

    def wrong(self) -> list[str]:
        """Weights and states that differ in any bit from what `fill` gives them."""
        found = [box.key for box in self._boxes() if not torch.equal(box.data, expected(box, self.world.offset))]
        for shard in self.optimizer.shards():
            names = ("master", "exp_avg", "exp_avg_sq")
            for name, values in zip(names, states_of_weights(shard.weights), strict=True):
                if not torch.equal(getattr(shard, name), values):
                    found.append(f"{shard.name} {name}")
        return found

    def untouched(self) -> bool:
        """Whether nothing was loaded: every weight is NaN, every moment zero."""
        moments = [moment for shard in self.optimizer.shards() for moment in (shard.exp_avg, shard.exp_avg_sq)]
        everything = {*self.held.parameters, *self.held.buffers}
        return set(unloaded(self.model)) == everything and not any(moment.any() for moment in moments)

    def _boxes(self) -> Iterator[ShardedTensor]:
        state = sharded_state(self.model)
        apply_factories(state)
        yield from (value for value in nested_values(state) if isinstance(value, ShardedTensor))


def hugging_face() -> dict[str, Any]:
    """config.json of the model: one dense layer and three of experts."""
    values: dict[str, Any] = json.loads(TINY_R1.read_text())
    return values | SIZES


def shape() -> ModelShape:
    return model_shape(hugging_face(), TINY_R1)


@cache
def global_tensor(key: str, sizes: tuple[int, ...], dtype: torch.dtype, offset: float = 0.0) -> Tensor:
    """The whole tensor `key`: numbers drawn from its name."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    return (torch.randn(sizes, generator=generator) + offset).to(dtype)


def expected(box: ShardedTensor, offset: float) -> Tensor:
    """The part of the global tensor that a box of Megatron's is."""
    whole = global_tensor(box.key, tuple(box.global_shape), box.dtype, offset)
    return whole[box.global_slice()]


def states_of_weights(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Master and moments of weights, in float32: masters have bits that the weights lack, and round to them."""
    values = weights.float()
    master = values if weights.dtype == torch.float32 else values * (1 + 2.0**-12)
    return master, values * 0.5 + 0.25, values.square() + 0.125


def rank() -> int:
    return dist.get_rank()


def quiet(line: str) -> None:
    """Progress is not what these tests are about."""
