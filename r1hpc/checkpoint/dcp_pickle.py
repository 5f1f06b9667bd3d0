"""Reading the `.metadata` of a torch_dist checkpoint without letting it run code.

The file is a pickle, and a pickle may name any function to call. Only the classes that torch's and Megatron's writers
put there are let through, so a checkpoint from elsewhere can be inspected before it is trusted.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from r1hpc.errors import CheckpointError

_METADATA = "torch.distributed.checkpoint.metadata"
_PLANNER = "torch.distributed.checkpoint.planner"
_MEGATRON = "megatron.core.dist_checkpointing.strategies.torch"
_DTYPES = {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class _Dropped:
    """Takes whatever arguments and state it is given: stands for what nobody reads.

    A class that takes its own state cannot be given attributes by a pickle, which would be those of the whole process.
    """

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class _Properties(TensorProperties):
    def __setstate__(self, state: Any) -> None:
        """Keep the dtype; the rest says nothing of what is stored."""
        self.dtype = state[0]


_RECORDS = {
    (_METADATA, "Metadata"): Metadata,
    (_METADATA, "MetadataIndex"): MetadataIndex,
    (_METADATA, "TensorStorageMetadata"): TensorStorageMetadata,
    (_METADATA, "BytesStorageMetadata"): BytesStorageMetadata,
    (_METADATA, "ChunkStorageMetadata"): ChunkStorageMetadata,
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"): _StorageInfo,
    (_MEGATRON, "MCoreMetadata"): Metadata,
}
"""A pickle could give attributes to these: each file gets subclasses of its own."""
_FIXED = {
    (_METADATA, "TensorProperties"): _Properties,
    ("torch", "Size"): torch.Size,
    ("collections", "OrderedDict"): OrderedDict,
}
_DROPPED = frozenset(
    {
        (_METADATA, "StorageMeta"),
        (_METADATA, "_MEM_FORMAT_ENCODING"),
        ("torch.serialization", "_get_layout"),
        # Megatron keeps the plans of its ranks in the same file, to reuse them in the next save.
        *((_PLANNER, name) for name in ("SavePlan", "WriteItem", "WriteItemType", "TensorWriteData")),
        (_PLANNER, "BytesIOWriteData"),
        (_MEGATRON, "MCoreSavePlan"),
        ("pathlib", "PosixPath"),
        ("pathlib", "PurePosixPath"),
    }
)


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: BinaryIO, file: Path) -> None:
        super().__init__(stream)
        self._file = file
        own: dict[tuple[str, str], type] = {place: type(kind.__name__, (kind,), {}) for place, kind in _RECORDS.items()}
        self._classes = own | _FIXED | dict.fromkeys(_DROPPED, _Dropped)

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) not in self._classes:
            raise CheckpointError(
                f"{self._file}: asks for {module}.{name}, which has no place in the metadata of a checkpoint; it was "
                "not loaded, since it could run any code: get the checkpoint from someone you trust"
            )
        return self._classes[module, name]


def read_dcp_metadata(file: Path) -> Metadata:
    """The metadata in `file`, which no code was run to read.

    Raises CheckpointError when it cannot be read, is no such pickle, or asks for anything else.
    """
    try:
        data = file.read_bytes()
        _check_memory(data)
        metadata = _Unpickler(io.BytesIO(data), file).load()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
    except CheckpointError:
        raise
    except Exception as error:  # a broken pickle fails in many ways
        raise CheckpointError(f"{file}: is no metadata of a torch_dist checkpoint ({error!r})") from error
    if not isinstance(metadata, Metadata):
        raise CheckpointError(f"{file}: holds {type(metadata).__name__}, not the metadata of a checkpoint")
    return metadata


def _check_memory(data: bytes) -> None:
    """Refuse a pickle that numbers an object beyond what it can hold: the table of objects grows to that number."""
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name in ("PUT", "LONG_BINPUT") and isinstance(argument, int) and argument > len(data):
            raise ValueError(f"it numbers an object {argument:,} in {len(data):,} bytes")
