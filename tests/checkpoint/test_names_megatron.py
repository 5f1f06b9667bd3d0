"""The table of names against what megatron-core itself says of a model: keys, shapes, dtypes, boxes of every rank."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factories
from megatron.core.transformer.moe.moe_layer import ExpertsBuilder
from torch.testing._internal.distributed.fake_pg import FakeStore

from r1hpc.checkpoint.names import TensorName, by_key, extra_state_keys, tensors
from r1hpc.model import compat
from r1hpc.model.build import sharded_state
from r1hpc.model.experts import GroupedExperts
from r1hpc.model.parallel import Layout
from r1hpc.model.settings import TrainSettings
from r1hpc.plan.model_shape import ModelShape, read_model_shape
from tests.checkpoint.megatron.model import UPSTREAM_EXPERTS, build_with_mtp
from tests.forked_ranks import fork_ranks

MODELS = Path(__file__).parents[2] / "configs/models"
DEADLINE_S = 120.0

Box = tuple[str, tuple[int, ...], tuple[int, ...]]
"""Key, offset, sizes."""


@dataclass
class Reported:
    """What megatron-core reports of some ranks of a model in bfloat16, taken together."""

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    boxes: set[Box]
    extra_states: set[str]


def test_tiny_r1_has_exactly_megatrons_tensors_and_every_rank_reads_a_box_of_the_grid() -> None:
    layout = Layout(tp=2, pp=2, cp=2, ep=4, last_layers=2)
    shape, reported = _report("tiny-r1", layout, range(layout.model_size))
    names = tensors(shape)
    assert reported.shapes == _shapes(names)
    assert reported.dtypes == _dtypes(names)
    assert reported.boxes == set(_grid(names, layout.tp))
    assert reported.extra_states < set(extra_state_keys(shape))


def test_full_r1_has_exactly_megatrons_tensors_on_the_128_gpus_of_the_recipe() -> None:
    layout = Layout(tp=8, pp=4, cp=4, ep=32, first_layers=16, last_layers=13)
    # Of each pipeline stage the first, a middle and the last rank: tensor ranks 0, 5, 7, expert ranks 0, 13, 31.
    ranks = [32 * stage + rank for stage in range(4) for rank in (0, 13, 31)]
    shape, reported = _report("deepseek-r1", layout, ranks)
    names = tensors(shape)
    assert reported.shapes == _shapes(names)
    assert reported.dtypes == _dtypes(names)
    assert reported.boxes < set(_grid(names, layout.tp))
    assert reported.extra_states < set(extra_state_keys(shape))
    biases = {key for key, dtype in reported.dtypes.items() if dtype == torch.float32}
    main = {key: math.prod(size) for key, size in reported.shapes.items() if not key.startswith("mtp.")}
    assert sum(count for key, count in main.items() if key not in biases) == 671_026_404_352
    assert sum(count for key, count in main.items() if key in biases) == 58 * 256


def test_extra_states_are_asked_for_by_every_split_linear_and_every_expert() -> None:
    shape, reported = _report("tiny-r1", Layout(), [0], UPSTREAM_EXPERTS)
    layers = [f"decoder.layers.{layer}" for layer in range(5)] + ["mtp.layers.0.transformer_layer"]
    attention = {
        f"{layer}.self_attention.{name}._extra_state/shard_0_1"
        for layer in layers
        for name in ("linear_q_up_proj", "linear_kv_up_proj", "linear_proj")
    }
    dense = {f"{layers[0]}.mlp.{name}._extra_state/shard_0_1" for name in ("linear_fc1", "linear_fc2")}
    moe = {
        f"{layer}.mlp.{part}.{name}._extra_state/{shard}"
        for layer in layers[1:]
        for name in ("linear_fc1", "linear_fc2")
        for part, shard in (
            ("shared_experts", "shard_0_1"),
            *(("experts.experts", f"shard_{expert}_8") for expert in range(8)),
        )
    }
    assert reported.extra_states == attention | dense | moe | {"mtp.layers.0.eh_proj._extra_state/shard_0_1"}
    # Transformer Engine's replicated down projections are TELinear modules, which have one each too.
    down = {
        f"{layer}.self_attention.{name}._extra_state/shard_0_1"
        for layer in layers
        for name in ("linear_q_down_proj", "linear_kv_down_proj")
    }
    assert set(extra_state_keys(shape)) == reported.extra_states | down


def _shapes(names: Sequence[TensorName]) -> dict[str, tuple[int, ...]]:
    return {key: parts[0].global_shape for key, parts in by_key(tuple(names)).items()}


def _dtypes(names: Sequence[TensorName]) -> dict[str, torch.dtype]:
    return {name.key: torch.float32 if name.float32 else torch.bfloat16 for name in names}


def _grid(names: Sequence[TensorName], tp: int) -> Iterator[Box]:
    """The boxes that the table predicts: each tensor's own, cut in `tp` along its split axis."""
    for name in names:
        if name.copy_of is not None:
            continue
        if name.split_axis is None:
            yield name.key, name.offset, name.box
            continue
        axis = name.split_axis + len(name.box) - len(name.shape)
        part = name.box[axis] // tp
        for rank in range(tp):
            offset, sizes = list(name.offset), list(name.box)
            offset[axis] += rank * part
            sizes[axis] = part
            yield name.key, tuple(offset), tuple(sizes)


def _report(
    model: str, layout: Layout, ranks: Sequence[int], experts: ExpertsBuilder = GroupedExperts
) -> tuple[ModelShape, Reported]:
    directory = MODELS / model
    config = json.loads((directory / "config.json").read_text())
    (reported,) = fork_ranks(lambda _: _reported(config, layout, ranks, experts), 1, DEADLINE_S)
    return read_model_shape(directory), reported


def _reported(config: dict[str, Any], layout: Layout, ranks: Sequence[int], experts: ExpertsBuilder) -> Reported:
    """Build these ranks one after another, without memory for weights and without the other ranks."""
    compat.prepare("meta")
    settings = TrainSettings(torch.bfloat16, device="meta")
    found = Reported({}, {}, set(), set())
    for rank in ranks:
        dist.init_process_group("fake", rank=rank, world_size=layout.model_size, store=FakeStore())
        layout.initialize()
        state = sharded_state(build_with_mtp(config, layout, settings, experts))
        apply_factories(state)
        for value in nested_values(state):
            if isinstance(value, ShardedTensor):
                _add(value, found)
            elif isinstance(value, ShardedObject):
                found.extra_states.add(value.unique_key)
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
    return found


def _add(tensor: ShardedTensor, found: Reported) -> None:
    shape = tuple(tensor.global_shape)
    assert found.shapes.setdefault(tensor.key, shape) == shape
    assert found.dtypes.setdefault(tensor.key, tensor.dtype) == tensor.dtype
    sizes = (1,) * tensor.prepend_axis_num + tuple(tensor.local_shape)
    found.boxes.add((tensor.key, tuple(tensor.global_offset), sizes))
