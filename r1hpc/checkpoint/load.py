"""A torch_dist checkpoint into the sharded state dict of a Megatron model, refusing what Megatron would let pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CheckpointingException
from megatron.core.dist_checkpointing.dict_utils import dict_list_map_outplace, nested_values
from megatron.core.dist_checkpointing.mapping import (
    LocalNonpersistentObject,
    ShardedObject,
    ShardedTensor,
    ShardedTensorFactory,
)
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from r1hpc.checkpoint.compare import Request, Stored, problems_of, unread
from r1hpc.checkpoint.names import tensors
from r1hpc.errors import CheckpointError, CheckpointProblems
from r1hpc.plan.model_shape import ModelShape

TRACKER = "latest_checkpointed_iteration.txt"


def load_weights(
    sharded_state_dict: Mapping[str, Any], directory: Path, shape: ModelShape, *, cast: bool = False
) -> dict[str, Any]:
    """The model's state dict, its weights read into the memory that `sharded_state_dict` refers to. Collective.

    directory: of the checkpoint, or one with a tracker (REF_LOAD). cast: weights may be of another floating-point dtype
    than the model's. Norms are found under Transformer Engine's names too; `_extra_state` objects that the checkpoint
    lacks are None.
    Raises CheckpointProblems, the same on every rank and before a weight is read; CheckpointError where a file is bad.
    """
    checkpoint = resolve(directory)
    entries = _read_entries(checkpoint)
    stored = {key: entry for key, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
    spelling = _Spelling(shape)
    state = dict_list_map_outplace(lambda value: _as_stored(value, entries.keys(), spelling), dict(sharded_state_dict))
    _refuse_together(checkpoint, list(_requests(state)), stored, spelling, cast)
    try:
        loaded: dict[str, Any] = dist_checkpointing.load(state, str(checkpoint))
    except (CheckpointException, CheckpointingException) as error:
        raise CheckpointError(
            f"{checkpoint}: cannot be read: {_reason(error)}; `python -m r1hpc.checkpoint verify` names every bad file"
        ) from error
    # Megatron adds what the checkpoint has beside tensors: iteration, version, arguments.
    return {key: loaded[key] for key in sharded_state_dict}


def resolve(directory: Path) -> Path:
    """The directory that holds `.metadata`: `directory` itself, or the one that its tracker names."""
    if (directory / ".metadata").is_file():
        return directory
    tracker = directory / TRACKER
    try:
        word = tracker.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise CheckpointError(
            f"{directory}: is no torch_dist checkpoint: it has neither .metadata nor {TRACKER} ({error.strerror});"
            " give the directory that convert published"
        ) from error
    if word != "release" and not word.isdecimal():
        raise CheckpointError(f'{tracker}: holds "{word}"; it must hold "release" or the number of an iteration')
    checkpoint = directory / (word if word == "release" else f"iter_{int(word):07d}")
    if not (checkpoint / ".metadata").is_file():
        raise CheckpointError(f"{checkpoint}: has no .metadata, yet {tracker.name} names it: it was never published")
    return checkpoint


class _Spelling:
    """The two names that a tensor may have: with the portable spec, and with Transformer Engine's."""

    def __init__(self, shape: ModelShape) -> None:
        names = tensors(shape)
        self.float32 = {name.key for name in names if name.float32}
        self._portable = {name.te_key: name.key for name in names if name.te_key}
        self._other = {**self._portable, **{portable: te for te, portable in self._portable.items()}}

    def portable(self, key: str) -> str:
        return self._portable.get(key, key)

    def in_store(self, key: str, stored: Collection[str]) -> str:
        """`key` as the checkpoint spells it; unchanged where it has neither name."""
        other = self._other.get(key)
        return other if other in stored and key not in stored else key


def _read_entries(checkpoint: Path) -> Mapping[str, Any]:
    """What `.metadata` says of every tensor and object."""
    try:
        return FileSystemReader(checkpoint).read_metadata().state_dict_metadata
    except Exception as error:  # a pickle: a damaged one raises nearly anything
        raise CheckpointError(f"{checkpoint / '.metadata'}: cannot be read ({error}); convert again") from error


def _as_stored(value: Any, stored: Collection[str], spelling: _Spelling) -> Any:
    """A leaf of the sharded state dict, under the name that the checkpoint has for it."""
    if isinstance(value, ShardedTensor):
        return replace(value, key=spelling.in_store(value.key, stored))
    # Linears without fp8 scales have nothing to keep there, and checkpoints of other specs lack some of the keys.
    if isinstance(value, ShardedObject) and value.key.endswith("._extra_state") and value.unique_key not in stored:
        return LocalNonpersistentObject(None)
    return value


def _requests(state: Mapping[str, Any]) -> Iterator[Request]:
    for value in nested_values(state):
        built = nested_values(value.build()) if isinstance(value, ShardedTensorFactory) else [value]
        for tensor in built:
            if isinstance(tensor, ShardedTensor):
                sizes = (1,) * tensor.prepend_axis_num + tuple(tensor.local_shape)
                yield Request(tensor.key, tensor.dtype, tuple(tensor.global_shape), tensor.global_offset, sizes)


def _refuse_together(
    checkpoint: Path, requests: list[Request], stored: Stored, spelling: _Spelling, cast: bool
) -> None:
    """Raise every rank's problems on every rank: one that raised alone would leave the others waiting for it."""
    float32 = spelling.float32
    mine = (problems_of(requests, stored, float32, cast), {spelling.portable(request.key) for request in requests})
    ranks = [mine] * (dist.get_world_size() if dist.is_initialized() else 1)
    if len(ranks) > 1:
        dist.all_gather_object(ranks, mine)
    problems = dict.fromkeys(problem for found, _ in ranks for problem in found)
    requested = {key for _, keys in ranks for key in keys}
    problems |= dict.fromkeys(unread(requested, {spelling.portable(key) for key in stored}))
    if problems:
        raise CheckpointProblems([f"{checkpoint}: {problem}" for problem in problems])


def _reason(error: BaseException) -> str:
    """The last line of a failure that Megatron and torch wrap in the traceback of every rank."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
