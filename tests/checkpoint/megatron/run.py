"""A model of megatron-core on CPU processes: saved with its own writer, loaded with ours, run forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from r1hpc.checkpoint.load import load_weights
from r1hpc.plan.model_shape import ModelShape
from tests.checkpoint.megatron import stand_ins
from tests.checkpoint.megatron.model import Layout, build, sharded_state
from tests.checkpoint.megatron.modules import context_positions
from tests.checkpoint.megatron.processes import fork_ranks, join_gloo

DEADLINE_S = 60.0

Fill = Callable[[ShardedTensor], Tensor]
"""The values of a box of a Megatron tensor, in the shape of its data."""


def logits(
    checkpoint: Path, config: Mapping[str, Any], shape: ModelShape, layout: Layout, tokens: list[int], scratch: Path
) -> Tensor:
    """[T, V] float32 of the model in `checkpoint`, loaded and run in this layout."""

    def work(rank: int) -> Tensor | None:
        model = _start(rank, config, layout, scratch, torch.float32)
        with torch.no_grad():
            for weight in (*model.parameters(), *_buffers(model)):
                weight.fill_(float("nan"))
            model.load_state_dict(load_weights(sharded_state(model), checkpoint, shape, cast=True))
            return _forward(model, layout, torch.tensor([tokens]))

    parts = [part for part in _fork(work, layout, scratch) if part is not None]
    positions = torch.cat([context_positions(len(tokens) // layout.cp, rank, layout.cp) for rank in range(layout.cp)])
    return torch.cat(parts)[positions.argsort()]


def load(
    checkpoint: Path,
    config: Mapping[str, Any],
    shape: ModelShape,
    layout: Layout,
    scratch: Path,
    dtype: torch.dtype = torch.bfloat16,
    cast: bool = False,
) -> list[Exception | None]:
    """What `load_weights` raises on each rank."""

    def work(rank: int) -> Exception | None:
        model = _start(rank, config, layout, scratch, dtype)
        try:
            load_weights(sharded_state(model), checkpoint, shape, cast=cast)
        except Exception as error:
            return error
        return None

    return _fork(work, layout, scratch)


def save(
    directory: Path, config: Mapping[str, Any], fill: Fill, scratch: Path, rename: Mapping[str, str], mtp: bool
) -> None:
    """A bf16 checkpoint written by megatron-core itself, its keys renamed on the way out."""

    def work(rank: int) -> None:
        # Its default starts a manager process by spawn, which imports everything anew.
        filesystem_async.get_write_results_queue("fork")
        model = _start(rank, config, Layout(), scratch, torch.bfloat16, mtp)
        state = sharded_state(model)
        apply_factories(state)
        for value in nested_values(state):
            if isinstance(value, ShardedTensor):
                value.data.copy_(fill(value))
                value.key = rename.get(value.key, value.key)
        directory.mkdir(parents=True)
        dist_checkpointing.save({"model": state}, str(directory))

    with torch.no_grad():
        _fork(work, Layout(), scratch)


def _fork(work: Callable[[int], Any], layout: Layout, scratch: Path) -> list[Any]:
    (scratch / "rendezvous").unlink(missing_ok=True)
    return fork_ranks(work, layout.world_size, DEADLINE_S)


def _start(
    rank: int, config: Mapping[str, Any], layout: Layout, scratch: Path, dtype: torch.dtype, mtp: bool = False
) -> GPTModel:
    stand_ins.install("cpu")
    join_gloo(rank, layout.world_size, scratch / "rendezvous", DEADLINE_S)
    layout.initialize()
    return build(config, layout, dtype, mtp).eval()


def _buffers(model: GPTModel) -> list[Tensor]:
    return [buffer for name, buffer in model.named_buffers() if name.endswith("expert_bias")]


def _forward(model: GPTModel, layout: Layout, tokens: Tensor) -> Tensor | None:
    """This rank's tokens' logits [T / CP, V]; None but for the first tensor rank of the last stage."""
    mine = context_positions(tokens.shape[1] // layout.cp, parallel_state.get_context_parallel_rank(), layout.cp)
    if not parallel_state.is_pipeline_first_stage():
        hidden = torch.empty(len(mine) // layout.tp, 1, model.config.hidden_size)
        dist.recv(hidden, parallel_state.get_pipeline_model_parallel_prev_rank())
        model.set_input_tensor(hidden)
    out: Tensor = model(tokens[:, mine], mine[None], None)
    if not parallel_state.is_pipeline_last_stage():
        dist.send(out.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())
    last = parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0
    return out[0] if last else None
