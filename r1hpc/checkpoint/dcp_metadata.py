"""The `.metadata` of a torch_dist checkpoint, and the objects in it that are not tensors."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from r1hpc.checkpoint.distcp import StoredChunk
from r1hpc.checkpoint.names import TensorName
from r1hpc.checkpoint.torch_dist import Extent

OBJECTS = "__objects.distcp"
"""Holds the common state and the one empty object that every `_extra_state` key points to."""
_COMMON_KEY = "common_state/shard_0_1"


@dataclass(frozen=True)
class WrittenTensor:
    """A tensor of the checkpoint and where its chunks were written."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: Sequence[tuple[str, StoredChunk]]
    """File and chunk, in their order."""


def common_state(iteration: int) -> dict[str, Any]:
    """What Megatron keeps beside the tensors. singleton_local_shards: experts are one tensor, as by its default."""
    return {
        "checkpoint_version": 3.0,
        "iteration": iteration,
        "content_metadata": {"singleton_local_shards": False},
    }


COMMON = common_state(0)
"""That of a conversion."""


def saved(value: Any) -> bytes:
    """`value` as torch.save writes it; to memory, for the archive repeats the name of the file it is written to."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def objects_file(common: Mapping[str, Any] = COMMON) -> bytes:
    """The content of OBJECTS: the empty object, then the common state; each an archive of a list of one."""
    return saved([None]) + saved([common])


def metadata_json() -> str:
    """metadata.json: which of Megatron's formats this is."""
    return json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1})


def pickled_metadata(
    names: Iterable[TensorName], chunks: Mapping[str, Sequence[tuple[str, StoredChunk]]], extra_states: Iterable[str]
) -> bytes:
    """The bytes of the `.metadata` of a conversion.

    chunks: (file, chunk) of each key in their order. A tensor that Transformer Engine's spec names differently stands
    there under both names, as one range of bytes.
    """
    tensors: dict[str, WrittenTensor] = {}
    for name in names:
        for key in (name.key, name.te_key):
            if key is not None and key not in tensors and not name.copy_of:
                dtype = torch.float32 if name.float32 else torch.bfloat16
                tensors[key] = WrittenTensor(dtype, name.global_shape, chunks[name.key])
    return pickled_metadata_of(tensors, extra_states, COMMON, "release")


def pickled_metadata_of(
    tensors: Mapping[str, WrittenTensor], extra_states: Iterable[str], common: Mapping[str, Any], save_id: str
) -> bytes:
    """The bytes of `.metadata` for these tensors and the objects that `objects_file(common)` holds.

    save_id: torch draws one by lot; the same checkpoint is to have the same bytes.
    """
    entries: dict[str, Any] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for key, tensor in tensors.items():
        boxes = [
            ChunkStorageMetadata(torch.Size(stored.chunk.offsets), torch.Size(stored.chunk.sizes))
            for _, stored in tensor.chunks
        ]
        entries[key] = TensorStorageMetadata(TensorProperties(dtype=tensor.dtype), torch.Size(tensor.shape), boxes)
        for number, (file, stored) in enumerate(tensor.chunks):
            index = MetadataIndex(key, torch.Size(stored.chunk.offsets), number)
            storage[index] = _StorageInfo(file, stored.offset, stored.length)
    for key, extent in _object_places(extra_states, common).items():
        entries[key] = BytesStorageMetadata()
        storage[MetadataIndex(key)] = _StorageInfo(extent.file, extent.offset, extent.length)
    metadata = Metadata(
        entries,
        planner_data=None,
        storage_data=storage,
        storage_meta=StorageMeta(checkpoint_id=save_id, save_id=save_id),
        version=CURRENT_DCP_VERSION,
    )
    return pickle.dumps(metadata, protocol=4)


def _object_places(extra_states: Iterable[str], common: Mapping[str, Any]) -> dict[str, Extent]:
    empty = len(saved([None]))
    places = dict.fromkeys(extra_states, Extent(OBJECTS, 0, empty))
    return places | {_COMMON_KEY: Extent(OBJECTS, empty, len(saved([common])))}
