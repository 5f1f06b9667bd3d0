"""The whole of R1 on the meta device, as 128 GPUs hold it, against the plan; and its names against the table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from torch.testing._internal.distributed.fake_pg import FakeStore

from r1hpc.checkpoint.names import by_key, tensors
from r1hpc.config import Config, load_config
from r1hpc.model import compat
from r1hpc.model.build import build_model, sharded_state, weights
from r1hpc.model.parallel import Layout
from r1hpc.model.settings import TrainSettings
from r1hpc.plan import Plan, plan_for
from r1hpc.plan.model_shape import read_model_shape
from tests.forked_ranks import fork_ranks
from tests.model.configs import ROOT, hugging_face


@dataclass(frozen=True)
class Held:
    """What one rank holds."""

    layers: int
    dense: int
    """Parameters that all ranks of a stage have, or share over the tensor ranks."""
    experts: int
    weight_bytes: int
    devices: frozenset[str]
    shapes: Mapping[str, tuple[int, ...]]
    """Of the whole tensors that it holds parts of, by checkpoint key."""


def held_by(rank: int, world_size: int, hf: Mapping[str, Any], layout: Layout, dtype: torch.dtype) -> Held:
    """Build one rank without memory for weights and without the other ranks."""
    compat.prepare("meta")
    dist.init_process_group("fake", rank=rank, world_size=world_size, store=FakeStore())
    layout.initialize()
    model = build_model(hf, layout, TrainSettings(dtype, device="meta"))
    state = sharded_state(model)
    apply_factories(state)
    shapes = {box.key: tuple(box.global_shape) for box in nested_values(state) if isinstance(box, ShardedTensor)}
    parameters = list(model.parameters())
    held = Held(
        layers=len(model.decoder.layers),
        dense=sum(p.numel() for p in parameters if getattr(p, "allreduce", True)),
        experts=sum(p.numel() for p in parameters if not getattr(p, "allreduce", True)),
        weight_bytes=sum(weight.nbytes for weight in weights(model).values()),
        devices=frozenset(weight.device.type for weight in weights(model).values()),
        shapes=shapes,
    )
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()
    return held


def of_every_stage(config: Config, plan: Plan, model: str, place: int) -> list[Held]:
    """What the rank at this place of each pipeline stage holds."""
    layout, dtype = Layout.of(config.perf), TrainSettings.of(config.perf, config.megatron, "meta").dtype
    stage_size = plan.world_size // layout.pp
    ranks = [stage * stage_size + place for stage in range(layout.pp)]
    (held,) = fork_ranks(
        lambda _: [held_by(rank, plan.world_size, hugging_face(model), layout, dtype) for rank in ranks], 1, 120
    )
    return held


@pytest.mark.parametrize("place", [0, 13, 31])
def test_every_gpu_of_the_recipe_holds_what_the_plan_says(place: int) -> None:
    loaded = load_config(ROOT / "configs/r1.yaml")
    plan = plan_for(loaded, num_prompts=17_400)
    held = of_every_stage(loaded.config, plan, "deepseek-r1", place)
    assert [rank.layers for rank in held] == [16, 16, 16, 13]
    assert [(rank.dense, rank.experts) for rank in held] == [
        (stage.dense_parameters, stage.expert_parameters) for stage in plan.stages
    ]
    for rank, stage, in_plan in zip(held, plan.stages, plan.phase("train").stages, strict=True):
        # 2 bytes a parameter, and float32 biases of 256 experts on each layer with a router.
        assert rank.weight_bytes == 2 * stage.parameters + 4 * 256 * stage.num_moe_layers
        planned = next(part.bytes for part in in_plan.parts if part.name == "weights")
        assert rank.weight_bytes - 4 * 256 * stage.num_moe_layers == planned
        assert rank.devices == {"meta"}


def test_the_stages_together_are_the_671_billion_parameters_under_the_tables_names() -> None:
    loaded = load_config(ROOT / "configs/r1.yaml")
    held = of_every_stage(loaded.config, plan_for(loaded, num_prompts=17_400), "deepseek-r1", 0)
    shapes = {key: shape for rank in held for key, shape in rank.shapes.items()}
    biases = {key for key in shapes if key.endswith("router.expert_bias")}
    assert sum(math.prod(shape) for key, shape in shapes.items() if key not in biases) == 671_026_404_352
    assert sum(math.prod(shapes[key]) for key in biases) == 58 * 256
    assert shapes == names_of("deepseek-r1")


def test_the_rehearsals_model_has_the_tables_names() -> None:
    loaded = load_config(ROOT / "tests/pipeline.yaml")
    held = of_every_stage(loaded.config, plan_for(loaded), "tiny-r1", 0)
    assert {key: shape for rank in held for key, shape in rank.shapes.items()} == names_of("tiny-r1")


def names_of(model: str) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the table, the multi-token-prediction layer left out: training builds none."""
    table = by_key(tensors(read_model_shape(ROOT / "configs/models" / model)))
    return {key: parts[0].global_shape for key, parts in table.items() if not key.startswith("mtp.")}
