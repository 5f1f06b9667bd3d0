"""Reading the `.metadata` of a torch_dist checkpoint without letting it run code.

The file is a pickle, and a pickle may name any function to call. Only the classes that torch's and Megatron's writers
put there are let through, so a checkpoint from elsewhere can be inspected before it is trusted.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.metadata import Metadata

from r1hpc.errors import CheckpointError

_METADATA = "torch.distributed.checkpoint.metadata"
_PLANNER = "torch.distributed.checkpoint.planner"
_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"
_ALLOWED = frozenset(
    {
        *((_METADATA, name) for name in ("Metadata", "MetadataIndex", "StorageMeta", "TensorProperties")),
        *((_METADATA, name) for name in ("TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata")),
        (_METADATA, "_MEM_FORMAT_ENCODING"),
        ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
        # Megatron keeps the plans of its ranks in the same file, to reuse them in the next save.
        *((_PLANNER, name) for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")),
        (_PLANNER, "BytesIOWriteData"),
        (_MEGATRON, "MCoreSavePlan"),
        (_MEGATRON, "MCoreMetadata"),
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        ("collections", "OrderedDict"),
        ("pathlib", "PosixPath"),
        ("pathlib", "PurePosixPath"),
    }
)


class _Dropped:
    """Takes whatever state it is given: stands for the plans of old Megatron versions, which nobody reads."""

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: BinaryIO, file: Path) -> None:
        super().__init__(stream)
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) not in _ALLOWED:
            raise CheckpointError(
                f"{self._file}: asks for {module}.{name}, which has no place in the metadata of a checkpoint; it was "
                "not loaded, since it could run any code: get the checkpoint from someone you trust"
            )
        if module == _MEGATRON:
            return Metadata if name == "MCoreMetadata" else _Dropped
        return super().find_class(module, name)


def read_dcp_metadata(file: Path) -> Metadata:
    """The metadata in `file`, which no code was run to read.

    Raises CheckpointError when it cannot be read, is no such pickle, or asks for anything else.
    """
    try:
        with open(file, "rb") as stream:
            metadata = _Unpickler(stream, file).load()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
    except CheckpointError:
        raise
    except Exception as error:  # a broken pickle fails in many ways
        raise CheckpointError(f"{file}: is no metadata of a torch_dist checkpoint ({error!r})") from error
    if not isinstance(metadata, Metadata):
        raise CheckpointError(f"{file}: holds {type(metadata).__name__}, not the metadata of a checkpoint")
    return metadata
