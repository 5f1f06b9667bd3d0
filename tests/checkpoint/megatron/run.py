"""A model of megatron-core on CPU processes: saved with its own writer, loaded with ours, compared, run forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, apply_factories
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.models.gpt import GPTModel
from torch import Tensor, nn

from r1hpc.checkpoint.load import load_weights
from r1hpc.model import compat
from r1hpc.model.build import sharded_state
from r1hpc.model.packed import local_positions, pack_sequences
from r1hpc.model.parallel import Layout
from r1hpc.model.settings import TrainSettings
from r1hpc.plan.model_shape import ModelShape
from tests.checkpoint.megatron.model import build
from tests.forked_ranks import Result, fork_ranks, join_gloo

DEADLINE_S = 60.0

Fill = Callable[[ShardedTensor], Tensor]
"""The values of a box of a Megatron tensor."""


@dataclass(frozen=True)
class Model:
    """What to build on every rank, and a directory where the ranks meet."""

    config: Mapping[str, Any]
    shape: ModelShape
    layout: Layout
    scratch: Path
    dtype: torch.dtype = torch.float32
    mtp: bool = False


def logits(model: Model, checkpoint: Path, tokens: list[int]) -> Tensor:
    """[T, V] of the checkpoint, loaded and run in the model's layout."""

    def work(built: GPTModel) -> Tensor | None:
        _load(built, model, checkpoint)
        return _forward(built, model.layout, torch.tensor([tokens]))

    parts = [part for part in _on_every_rank(model, work) if part is not None]
    ranks = model.layout.cp
    positions = torch.cat([local_positions([len(tokens)], rank, ranks) for rank in range(ranks)])
    return torch.cat(parts)[positions.argsort()]


def wrong_weights(model: Model, checkpoint: Path, fill: Fill) -> tuple[int, list[str]]:
    """How many boxes of a model on one rank were loaded, and the keys of those that differ from `fill` in any bit."""

    def work(built: GPTModel) -> tuple[int, list[str]]:
        _load(built, model, checkpoint)
        boxes = list(_boxes(sharded_state(built)))
        return len(boxes), [box.key for box in boxes if not torch.equal(box.data, fill(box))]

    (found,) = _on_every_rank(model, work)
    return found


def try_to_load(model: Model, checkpoint: Path, cast: bool) -> list[Exception | None]:
    """What `load_weights` raises on each rank."""

    def work(built: GPTModel) -> Exception | None:
        try:
            load_weights(sharded_state(built), checkpoint, model.shape, cast=cast)
        except Exception as error:
            return error
        return None

    return _on_every_rank(model, work)


def save(model: Model, directory: Path, fill: Fill, rename: Mapping[str, str]) -> None:
    """Write the checkpoint with megatron-core on one rank: without extra states, keys renamed on the way out."""

    def work(built: GPTModel) -> None:
        # Its default starts a manager process by spawn, which imports everything anew.
        filesystem_async.get_write_results_queue("fork")
        state = {key: value for key, value in sharded_state(built).items() if not isinstance(value, ShardedObject)}
        for box in _boxes(state):
            box.data.copy_(fill(box))
            box.key = rename.get(box.key, box.key)
        directory.mkdir(parents=True)
        dist_checkpointing.save(state, str(directory))

    _on_every_rank(model, work)


def _on_every_rank(model: Model, work: Callable[[GPTModel], Result]) -> list[Result]:
    rendezvous = model.scratch / "rendezvous"
    rendezvous.unlink(missing_ok=True)
    ranks = model.layout.model_size

    def on_rank(rank: int) -> Result:
        compat.prepare("cpu")
        join_gloo(rank, ranks, rendezvous, DEADLINE_S)
        model.layout.initialize()
        with torch.no_grad():
            answer = work(build(model.config, model.layout, TrainSettings(model.dtype), model.mtp))
        # A rank that left now would close the connections of one that is still making its groups.
        dist.barrier()
        return answer

    return fork_ranks(on_rank, ranks, DEADLINE_S)


def _load(built: GPTModel, model: Model, checkpoint: Path) -> None:
    state = sharded_state(built)
    for box in _boxes(dict(state)):
        box.data.fill_(float("nan"))  # a weight that is left alone must show
    built.load_state_dict(load_weights(state, checkpoint, model.shape, cast=True))


def _boxes(state: dict[str, Any]) -> Iterator[ShardedTensor]:
    """Every box of the state; factories in it are replaced by what they make."""
    apply_factories(state)
    yield from (value for value in nested_values(state) if isinstance(value, ShardedTensor))


def _forward(model: GPTModel, layout: Layout, tokens: Tensor) -> Tensor | None:
    """This rank's tokens' logits [T / CP, V]; null but for the first tensor rank of the last stage."""
    sequences = pack_sequences([tokens.shape[1]], parallel_state.get_context_parallel_rank(), layout.cp)
    if not parallel_state.is_pipeline_first_stage():
        hidden = torch.empty(sequences.local_tokens // layout.tp, 1, model.config.hidden_size)
        dist.recv(hidden, parallel_state.get_pipeline_model_parallel_prev_rank())
        model.set_input_tensor(hidden)
    out: Tensor = model(
        input_ids=tokens[:, sequences.positions],
        position_ids=sequences.positions[None],
        attention_mask=None,
        packed_seq_params=sequences,
        output_processor=_whole_logits,
    )
    if not parallel_state.is_pipeline_last_stage():
        dist.send(out.contiguous(), parallel_state.get_pipeline_model_parallel_next_rank())
    last = parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0
    return out.squeeze(1) if last else None


def _whole_logits(hidden_states: Tensor, output_layer: nn.Module, **_: object) -> Tensor:
    """[T / CP, 1, V], of all tensor ranks' vocabulary."""
    logits: Tensor = output_layer(hidden_states, runtime_gather_output=True)[0]
    return logits
