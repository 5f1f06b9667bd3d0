"""Who writes what: each rank what it owns, one of the ranks that hold the same, everything exactly once.

Made once, when the optimizer has its shards: they stay where they are. A save then needs no word between the ranks
until it is complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from r1hpc.checkpoint.boxes import Box, coverage_problem, whole
from r1hpc.checkpoint.collective import everyones, rank_of
from r1hpc.errors import CheckpointProblems
from r1hpc.train.checkpoint.pieces import HeldModel, Run
from r1hpc.train.checkpoint.states import STATES, state_key, states_of
from r1hpc.train.optimizer import ParamShard


@dataclass(frozen=True)
class Owned:
    """Elements of a weight that this rank writes, and the optimizer's shard that has their states."""

    run: Run
    dtype: torch.dtype
    shard: ParamShard | None
    """Null for a buffer."""


@dataclass(frozen=True)
class Item:
    """One box of one tensor of the checkpoint, to be written by this rank."""

    key: str
    box: Box
    flat: Tensor
    """[box.volume] its elements, where they are; read while it is written, never copied as a whole."""


@dataclass(frozen=True)
class TensorForm:
    """A tensor of the checkpoint as a whole."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class SavePlan:
    """What every save of this rank writes."""

    rank: int
    owned: tuple[Owned, ...]
    tensors: Mapping[str, TensorForm]
    """Every tensor of the checkpoint, those of other ranks included."""
    extra_states: tuple[str, ...]
    """Of all ranks."""
    group: ProcessGroup | None
    """The ranks that save together; null: all."""

    def items(self, weights: Mapping[str, Tensor]) -> Iterator[Item]:
        """Weights first, so that they lie in files of their own, then each state of the optimizer.

        weights: by the names of the model, parameters and buffers, in their shapes and dtypes.
        """
        for owned in self.owned:
            run = owned.run
            yield Item(run.key, run.box, weights[run.name].view(-1)[run.begin : run.end])
        for state in STATES:
            for owned in self.owned:
                if owned.shard is not None:
                    run, first = owned.run, owned.shard.begin
                    values = states_of(owned.shard)[state]
                    yield Item(state_key(state, run.key), run.box, values[run.begin - first : run.end - first])

    @property
    def total_bytes(self) -> int:
        """Payload of the whole checkpoint, over all ranks."""
        return sum(torch.Size(form.shape).numel() * form.dtype.itemsize for form in self.tensors.values())


_Claim = tuple[str, tuple[int, ...], tuple[int, ...]]
"""Key, offset, sizes."""


@dataclass(frozen=True)
class _Claims:
    """What one rank could write."""

    boxes: tuple[_Claim, ...]
    weights: dict[str, TensorForm]
    trained: frozenset[str]
    """Keys of weights that have states of the optimizer."""
    extra_states: tuple[str, ...]


def plan_save(model: HeldModel, shards: Iterable[ParamShard], group: ProcessGroup | None = None) -> SavePlan:
    """What this rank writes. Collective over `group`, once.

    Raises CheckpointProblems, the same on every rank, where the ranks together do not hold every element of a tensor
    exactly once (copies of one box on several ranks aside: the first of them writes it).
    """
    candidates = list(_candidates(model, shards))
    mine = _Claims(
        boxes=tuple(_claim(owned.run) for owned in candidates),
        weights={owned.run.key: TensorForm(owned.dtype, owned.run.global_shape) for owned in candidates},
        trained=frozenset(owned.run.key for owned in candidates if owned.shard is not None),
        extra_states=model.extra_states,
    )
    ranks = everyones(mine, group)
    owner: dict[_Claim, int] = {}
    for number, claims in enumerate(ranks):
        for claim in claims.boxes:
            owner.setdefault(claim, number)
    weights = {key: form for claims in ranks for key, form in claims.weights.items()}
    if problems := list(_problems(owner, weights)):
        raise CheckpointProblems(problems)
    trained = {key for claims in ranks for key in claims.trained}
    states = {
        state_key(state, key): TensorForm(torch.float32, form.shape)
        for state in STATES
        for key, form in weights.items()
        if key in trained
    }
    rank = rank_of(group)
    return SavePlan(
        rank=rank,
        owned=tuple(owned for owned in candidates if owner[_claim(owned.run)] == rank),
        tensors=weights | states,
        extra_states=tuple(dict.fromkeys(key for claims in ranks for key in claims.extra_states)),
        group=group,
    )


def _candidates(model: HeldModel, shards: Iterable[ParamShard]) -> Iterator[Owned]:
    for shard in shards:
        held = model.parameters[shard.name]
        for run in held.runs(shard.begin, shard.end):
            yield Owned(run, held.tensor.dtype, shard)
    for held in model.buffers.values():
        for run in held.runs(0, held.tensor.numel()):
            yield Owned(run, held.tensor.dtype, None)


def _claim(run: Run) -> _Claim:
    return run.key, run.box.offset, run.box.sizes


def _problems(claims: Iterable[_Claim], weights: Mapping[str, TensorForm]) -> Iterator[str]:
    boxes: dict[str, list[Box]] = {}
    for key, offset, sizes in claims:
        boxes.setdefault(key, []).append(Box(offset, sizes))
    for key, form in weights.items():
        if problem := coverage_problem(whole(form.shape), boxes[key]):
            yield f"{key} {list(form.shape)}: the ranks do not hold each element once: {problem}"
