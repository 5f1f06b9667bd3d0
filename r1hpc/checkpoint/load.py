"""A torch_dist checkpoint into the sharded state dict of a Megatron model, refusing what Megatron would let pass."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace, nested_values
from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedObject,
    ShardedTensor,
    ShardedTensorFactory,
)
from torch.distributed.checkpoint.api import CheckpointException

from r1hpc.checkpoint.boxes import Box
from r1hpc.checkpoint.collective import everyones, raise_together, rank_of
from r1hpc.checkpoint.compare import Request, problems_of, unread
from r1hpc.checkpoint.names import tensors
from r1hpc.checkpoint.structure import file_problems
from r1hpc.checkpoint.torch_dist import TorchDist, open_torch_dist
from r1hpc.errors import CheckpointError, CheckpointProblems, R1hpcError
from r1hpc.plan.model_shape import ModelShape


def load_weights(
    sharded_state_dict: Mapping[str, Any], directory: Path, shape: ModelShape, *, cast: bool = False
) -> dict[str, Any]:
    """The model's state dict, its weights read into the memory that `sharded_state_dict` refers to. Collective.

    directory: of the checkpoint, or one with a tracker (REF_LOAD). cast: weights may be of another floating-point dtype
    than the model's. Norms are found under Transformer Engine's names too; `_extra_state` objects that the checkpoint
    lacks are None.
    Raises CheckpointProblems, the same on every rank and before a weight is read; CheckpointError where a file is bad.
    """
    checkpoint = _open_together(directory)
    spelling = _Spelling(shape)
    state = dict_list_map_outplace(lambda value: _as_stored(value, checkpoint, spelling), dict(sharded_state_dict))
    _refuse_together(list(_requests(state)), checkpoint, spelling, cast)
    try:
        loaded: dict[str, Any] = dist_checkpointing.load(state, str(checkpoint.directory))
    except (CheckpointException, CheckpointingException) as error:
        raise CheckpointError(
            f"{checkpoint.directory}: cannot be read: {_reason(error)};"
            " `python -m r1hpc.checkpoint verify` names every bad file"
        ) from error
    # Megatron adds what the checkpoint has beside tensors: iteration, version, arguments.
    return {key: loaded[key] for key in sharded_state_dict}


class _Spelling:
    """The two names that a tensor may have: with the portable spec, and with Transformer Engine's."""

    def __init__(self, shape: ModelShape) -> None:
        names = tensors(shape)
        self.float32 = {name.key for name in names if name.float32}
        self._portable = {name.te_key: name.key for name in names if name.te_key}
        self._other = {**self._portable, **{portable: te for te, portable in self._portable.items()}}

    def portable(self, key: str) -> str:
        return self._portable.get(key, key)

    def in_store(self, key: str, stored: Container[str]) -> str:
        """`key` as the checkpoint spells it; unchanged where it has neither name."""
        other = self._other.get(key)
        return key if other is None or key in stored or other not in stored else other


def _as_stored(value: Any, checkpoint: TorchDist, spelling: _Spelling) -> Any:
    """A leaf of the sharded state dict, under the name that the checkpoint has for it."""
    if isinstance(value, ShardedTensor):
        return replace(value, key=spelling.in_store(value.key, checkpoint.tensors))
    # Linears without fp8 scales have nothing to keep there, and checkpoints of other specs lack some of the keys.
    if isinstance(value, ShardedObject) and value.key.endswith("._extra_state"):
        return value if value.unique_key in checkpoint.objects else LocalNonpersistentObject(None)
    return value


def _requests(state: Mapping[str, Any]) -> Iterator[Request]:
    for value in nested_values(state):
        built = nested_values(value.build()) if isinstance(value, ShardedTensorFactory) else [value]
        for tensor in built:
            if isinstance(tensor, ShardedTensor):
                sizes = (1,) * tensor.prepend_axis_num + tuple(tensor.local_shape)
                box = Box(tuple(tensor.global_offset), sizes)
                yield Request(tensor.key, tensor.dtype, tuple(tensor.global_shape), box)


def _open_together(directory: Path) -> TorchDist:
    """Raise on every rank what any rank meets: one that raised alone would leave the others waiting for it."""
    checkpoint, failure = None, None
    try:
        checkpoint = open_torch_dist(directory)
    except R1hpcError as error:
        failure = error
    for failed in everyones(failure):
        if failed is not None:
            raise failed
    assert checkpoint is not None
    return checkpoint


def _refuse_together(requests: list[Request], checkpoint: TorchDist, spelling: _Spelling, cast: bool) -> None:
    """Raise on every rank the problems that any rank has with the checkpoint."""
    found = [
        f"{checkpoint.directory}: {problem}"
        for problem in problems_of(requests, checkpoint.tensors, spelling.float32, cast)
    ]
    if rank_of() == 0:
        found += file_problems(checkpoint, {})
    mine = {spelling.portable(request.key) for request in requests}
    requested = {key for keys in everyones(mine) for key in keys}
    left = unread(requested, {spelling.portable(key) for key in checkpoint.tensors})
    found += [f"{checkpoint.directory}: {problem}" for problem in left]
    raise_together([CheckpointProblems(found)] if found else [])


def _reason(error: BaseException) -> str:
    """The last line of a failure that Megatron and torch wrap in the traceback of every rank."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
