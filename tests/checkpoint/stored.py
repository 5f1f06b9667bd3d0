"""Writing torch_dist checkpoints in any grid of chunks, and editing the metadata of those that were written."""

from __future__ import annotations

import io
import itertools
import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from r1hpc.checkpoint.boxes import Box

Cuts = Sequence[Sequence[int]]
"""For each axis where its parts end: [[2, 5], [4]] cuts 5 rows in 2 and 3."""


def grid(cuts: Cuts) -> list[Box]:
    """Every box of a grid."""
    spans = [list(itertools.pairwise([0, *ends])) for ends in cuts]
    return [
        Box(tuple(begin for begin, _ in parts), tuple(end - begin for begin, end in parts))
        for parts in itertools.product(*spans)
    ]


def write_torch_dist(directory: Path, tensors: Mapping[str, tuple[Tensor, Cuts]]) -> None:
    """Write each tensor in its grid, chunks dealt over two files, as torch's own writer lays them out."""
    directory.mkdir(parents=True)
    files = {"__0_0.distcp": bytearray(), "__1_0.distcp": bytearray()}
    metadata = Metadata({}, storage_data={})
    turn = itertools.cycle(files)
    for key, (tensor, cuts) in tensors.items():
        boxes = grid(cuts)
        chunks = [ChunkStorageMetadata(torch.Size(box.offset), torch.Size(box.sizes)) for box in boxes]
        metadata.state_dict_metadata[key] = TensorStorageMetadata(TensorProperties(tensor.dtype), tensor.shape, chunks)
        for box in boxes:
            slices = tuple(slice(begin, end) for begin, end in zip(box.offset, box.end, strict=True))
            archive = io.BytesIO()
            torch.save(tensor[slices].clone(), archive)
            file = next(turn)
            index = MetadataIndex(key, torch.Size(box.offset))
            metadata.storage_data[index] = _StorageInfo(file, len(files[file]), len(archive.getvalue()))
            files[file] += archive.getvalue()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    (directory / ".metadata").write_bytes(pickle.dumps(metadata))
    (directory / "metadata.json").write_text(json.dumps({"sharded_backend": "torch_dist"}))


def edit_metadata(directory: Path, edit: Callable[[Metadata], None]) -> None:
    """Change the `.metadata` of a checkpoint of ours."""
    file = directory / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    edit(metadata)
    file.write_bytes(pickle.dumps(metadata))


def stored_tensor(metadata: Metadata, key: str) -> TensorStorageMetadata:
    """What the metadata says of a tensor."""
    entry = metadata.state_dict_metadata[key]
    assert isinstance(entry, TensorStorageMetadata)
    return entry


def located(directory: Path, key: str, offset: Sequence[int]) -> _StorageInfo:
    """Where a chunk lies."""
    metadata = pickle.loads((directory / ".metadata").read_bytes())
    info = metadata.storage_data[MetadataIndex(key, torch.Size(offset))]
    assert isinstance(info, _StorageInfo)
    return info


def flip_bit(file: Path, at: int) -> None:
    """Turn the lowest bit of one byte over."""
    with open(file, "r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 1]))
