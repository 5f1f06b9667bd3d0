"""The `.metadata` of a torch_dist checkpoint, and the objects in it that are not tensors."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterable, Mapping, Sequence
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

OBJECTS = "__objects.distcp"
"""Holds the common state and the one empty object that every `_extra_state` key points to."""
COMMON = {"checkpoint_version": 3.0, "iteration": 0, "content_metadata": {"singleton_local_shards": False}}
"""What Megatron keeps beside the tensors. singleton_local_shards: experts are one tensor, as by its default."""
_COMMON_KEY = "common_state/shard_0_1"


def saved(value: Any) -> bytes:
    """`value` as torch.save writes it; to memory, for the archive repeats the name of the file it is written to."""
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def objects_file() -> bytes:
    """The content of OBJECTS: the empty object, then the common state; each an archive of a list of one."""
    return saved([None]) + saved([COMMON])


def metadata_json() -> str:
    """metadata.json: which of Megatron's formats this is."""
    return json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1})


def pickled_metadata(
    names: Iterable[TensorName], chunks: Mapping[str, Sequence[tuple[str, StoredChunk]]], extra_states: Iterable[str]
) -> bytes:
    """The bytes of `.metadata`.

    chunks: (file, chunk) of each key in their order. A tensor that Transformer Engine's spec names differently stands
    there under both names, as one range of bytes.
    """
    tensors: dict[str, Any] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for name in names:
        for key in (name.key, name.te_key):
            if key is None or key in tensors or name.copy_of:
                continue
            dtype = torch.float32 if name.float32 else torch.bfloat16
            boxes = [
                ChunkStorageMetadata(torch.Size(c.chunk.offsets), torch.Size(c.chunk.sizes))
                for _, c in chunks[name.key]
            ]
            tensors[key] = TensorStorageMetadata(TensorProperties(dtype=dtype), torch.Size(name.global_shape), boxes)
            for number, (file, chunk) in enumerate(chunks[name.key]):
                index = MetadataIndex(key, torch.Size(chunk.chunk.offsets), number)
                storage[index] = _StorageInfo(file, chunk.offset, chunk.length)
    empty, common = len(saved([None])), len(saved([COMMON]))
    nothing = _StorageInfo(OBJECTS, 0, empty)
    for key in extra_states:
        tensors[key] = BytesStorageMetadata()
        storage[MetadataIndex(key)] = nothing
    tensors[_COMMON_KEY] = BytesStorageMetadata()
    storage[MetadataIndex(_COMMON_KEY)] = _StorageInfo(OBJECTS, empty, common)
    metadata = Metadata(
        tensors,
        planner_data=None,
        storage_data=storage,
        # Both are random by default; the bytes of a conversion are to be the same each time.
        storage_meta=StorageMeta(checkpoint_id="release", save_id="release"),
        version=CURRENT_DCP_VERSION,
    )
    return pickle.dumps(metadata, protocol=4)
