"""A torch_dist checkpoint: which boxes of which tensors lie where.

The format is that of torch.distributed.checkpoint (DCP), as Megatron writes it. All of this comes from the metadata
alone; `ChunkReader` reads payloads.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)

from r1hpc.checkpoint.boxes import Box
from r1hpc.checkpoint.dcp_pickle import read_dcp_metadata
from r1hpc.errors import CheckpointError, CheckpointProblems

METADATA = ".metadata"
TRACKER = "latest_checkpointed_iteration.txt"
_MAX_PROBLEMS = 20

T = TypeVar("T")


@dataclass(frozen=True)
class Extent:
    """A range of bytes: one archive of torch.save within a file."""

    file: str
    """Relative to the checkpoint."""
    offset: int
    length: int


@dataclass(frozen=True)
class Chunk:
    """One box of a tensor, stored by itself."""

    box: Box
    extent: Extent


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the checkpoint."""

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]
    """In the order of their offsets."""

    def meeting(self, box: Box) -> Iterator[tuple[Chunk, Box]]:
        """The chunks that share elements with `box`, each with what they share."""
        if not box.sizes:
            yield from ((chunk, box) for chunk in self.chunks)
            return
        # Experts make hundreds of chunks of one tensor; few of them lie in reach along the first axis.
        first = bisect_left(self._begins, box.offset[0] - self._longest + 1)
        last = bisect_left(self._begins, box.end[0])
        for chunk in self.chunks[first:last]:
            if (common := chunk.box.meet(box)) is not None:
                yield chunk, common

    @cached_property
    def _begins(self) -> list[int]:
        return [chunk.box.offset[0] for chunk in self.chunks]

    @cached_property
    def _longest(self) -> int:
        return max((chunk.box.sizes[0] for chunk in self.chunks), default=0)


@dataclass(frozen=True)
class TorchDist:
    """A checkpoint whose metadata is consistent in itself."""

    directory: Path
    """The one that holds `.metadata`."""
    tensors: Mapping[str, StoredTensor]
    objects: Mapping[str, Extent]
    """What is no tensor: `_extra_state`, random states, the common state."""

    def extents(self) -> Iterator[Extent]:
        """Every range that the metadata points to; an alias gives its own once more."""
        for tensor in self.tensors.values():
            yield from (chunk.extent for chunk in tensor.chunks)
        yield from self.objects.values()


def resolve(path: Path) -> Path:
    """The directory that holds `.metadata`: `path`, or the checkpoint that its tracker file names.

    Raises CheckpointError when there is none, naming what is missing.
    """
    if os.path.isfile(path / METADATA):  # Path.is_file raises in a directory that may not be looked into
        return path
    tracker = path / TRACKER
    try:
        word = tracker.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise CheckpointError(
            f"{path}: is no torch_dist checkpoint: it has neither {METADATA} nor {TRACKER}{why_unseen(path)}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{tracker}: cannot be read ({error})") from error
    if word != "release" and not (word.isascii() and word.isdigit()):
        raise CheckpointError(f'{tracker}: says {word[:40]!r}; it must say "release" or the number of an iteration')
    directory = path / (word if word == "release" else f"iter_{int(word):07d}")
    if not os.path.isfile(directory / METADATA):
        raise CheckpointError(f"{tracker}: names {word}, but {directory / METADATA} is not there")
    return directory


def why_unseen(path: Path) -> str:
    """What keeps the files of a directory from being seen, to be added to an error; empty if nothing does."""
    try:
        os.scandir(path).close()
    except NotADirectoryError:
        return "; it is no directory"
    except OSError as error:
        return f"; it cannot be looked into ({error.strerror})"
    return ""


def open_torch_dist(path: Path) -> TorchDist:
    """The checkpoint in `path`, or the one that the tracker in `path` names.

    Raises CheckpointError when it cannot be read, CheckpointProblems when its metadata contradicts itself.
    """
    directory = resolve(path)
    file = directory / METADATA
    metadata = read_dcp_metadata(file)
    problems: list[str] = []
    try:
        checkpoint = _understood(directory, metadata, problems)
    except Exception as error:  # it came from a pickle, and any of its fields may be anything
        raise CheckpointError(f"{file}: is no metadata of a checkpoint ({error}); it is damaged") from error
    if problems:
        rest = len(problems) - _MAX_PROBLEMS
        shown = [f"{file}: {problem}" for problem in problems[:_MAX_PROBLEMS]]
        raise CheckpointProblems(shown + ([f"and {rest} more"] if rest > 0 else []))
    return checkpoint


def _understood(directory: Path, metadata: Metadata, problems: list[str]) -> TorchDist:
    extents = _extents(metadata, problems)
    tensors: dict[str, StoredTensor] = {}
    objects: dict[str, Extent] = {}
    for key, stored in metadata.state_dict_metadata.items():
        if isinstance(stored, TensorStorageMetadata):
            tensors[_checked(key, str)] = _tensor(key, stored, extents, problems)
        elif isinstance(stored, BytesStorageMetadata):
            if (extent := extents.pop((_checked(key, str), None), None)) is None:
                problems.append(f"{key}: no file is named for it")
            else:
                objects[key] = extent
        else:
            problems.append(f"{key}: is a {type(stored).__name__}, neither a tensor nor an object")
    problems += [
        f"{key} at {list(offset or ())}: {extent.file} has it, but no tensor claims it"
        for (key, offset), extent in extents.items()
    ]
    return TorchDist(directory, tensors, objects)


_Extents = dict[tuple[str, tuple[int, ...] | None], Extent]


def _extents(metadata: Metadata, problems: list[str]) -> _Extents:
    found: _Extents = {}
    for index, info in (metadata.storage_data or {}).items():
        if not isinstance(index, MetadataIndex) or not isinstance(info, _StorageInfo):
            problems.append(f"its storage_data has an entry of {type(index).__name__}, {type(info).__name__}")
            continue
        path = PurePosixPath(info.relative_path)
        if path.is_absolute() or ".." in path.parts:
            problems.append(f"{index.fqn}: is placed in {path}, outside of the checkpoint")
        elif info.transform_descriptors:
            problems.append(
                f"{index.fqn}: is stored transformed ({', '.join(info.transform_descriptors)}); that cannot be read"
            )
        else:
            offset = None if index.offset is None else _numbers(index.offset)
            found[_checked(index.fqn, str), offset] = Extent(str(path), *_numbers((info.offset, info.length)))
    return found


def _tensor(key: str, stored: TensorStorageMetadata, extents: _Extents, problems: list[str]) -> StoredTensor:
    """The tensor with its chunks, whose extents are taken out of `extents`: what is left belongs to nothing."""
    chunks: list[Chunk] = []
    shape = _numbers(stored.size)
    for chunk in stored.chunks:
        box = Box(_numbers(chunk.offsets), _numbers(chunk.sizes))
        extent = extents.pop((key, box.offset), None)
        if len(box.offset) != len(shape) or len(box.sizes) != len(shape):
            problems.append(f"{key}: its part {list(box.offset)} + {list(box.sizes)} is no box of {list(shape)}")
        elif extent is None:
            problems.append(f"{key}: no file is named for its part {box}")
        else:
            chunks.append(Chunk(box, extent))
    chunks.sort(key=lambda chunk: chunk.box.offset)
    return StoredTensor(key, shape, _checked(stored.properties.dtype, torch.dtype), tuple(chunks))


def _numbers(values: Iterable[Any]) -> tuple[int, ...]:
    """Sizes or offsets."""
    numbers = tuple(values)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise TypeError(f"{numbers!r:.60} are no sizes or offsets")
    return numbers


def _checked(value: T, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r:.60} is no {kind.__name__}")
    return value
