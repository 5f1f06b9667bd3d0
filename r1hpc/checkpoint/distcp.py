"""Writing one .distcp file: archives of torch.save one after another, their payloads streamed in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
import xxhash

from r1hpc.checkpoint.envelope import envelope
from r1hpc.checkpoint.layout import Chunk, chunks
from r1hpc.checkpoint.names import TensorName
from r1hpc.checkpoint.positioned import PositionedWriter


@dataclass(frozen=True)
class StoredChunk:
    """Where a chunk lies in a file."""

    key: str
    chunk: Chunk
    offset: int
    """First byte of its archive."""
    length: int
    xxh3: str
    """xxh3_64 of these `length` bytes."""


def as_json(stored: StoredChunk) -> list[object]:
    """[key, offsets, sizes, offset, length, xxh3], as a part records it."""
    chunk = stored.chunk
    return [stored.key, list(chunk.offsets), list(chunk.sizes), stored.offset, stored.length, stored.xxh3]


def from_json(value: Sequence[Any]) -> StoredChunk:
    """The inverse of `as_json`."""
    key, offsets, sizes, offset, length, xxh3 = value
    return StoredChunk(key, Chunk(tuple(offsets), tuple(sizes)), offset, length, xxh3)


@dataclass
class _Slot:
    """A chunk that is being filled, front to back."""

    chunk: Chunk
    first_row: int
    """In the Hugging Face tensor."""
    first_column: int
    begin: int
    after: bytes
    cursor: int
    digest: xxhash.xxh3_64 = field(default_factory=xxhash.xxh3_64)


class DistcpWriter:
    """Appends tensors to a file; holds no more of them than the band it is given."""

    def __init__(self, stream: BinaryIO, pieces: int) -> None:
        self.stored: list[StoredChunk] = []
        self.size_bytes = 0
        self._file = PositionedWriter(stream.fileno())
        self._pieces = pieces

    def write(self, name: TensorName, bands: Iterable[tuple[int, torch.Tensor]]) -> Iterator[int]:
        """Write all chunks of one tensor from its row bands in order; yields the payload bytes of each band."""
        slots = [self._open(name, chunk) for chunk in chunks(name, self._pieces)]
        for row, values in bands:
            for slot in slots:
                self._fill(slot, row, values)
            yield values.nbytes
        for slot in slots:
            self._close(name.key, slot)

    def _open(self, name: TensorName, chunk: Chunk) -> _Slot:
        dtype = torch.float32 if name.float32 else torch.bfloat16
        before, after = envelope(dtype, chunk.sizes)
        lead = len(name.global_shape) - len(name.shape)
        start = [a - b for a, b in zip(chunk.offsets, name.offset, strict=True)][lead:]
        slot = _Slot(chunk, start[0], start[1] if len(start) > 1 else 0, self.size_bytes, after, self.size_bytes)
        self.size_bytes += len(before) + math.prod(chunk.sizes) * dtype.itemsize + len(after)
        self._append(slot, memoryview(before))
        return slot

    def _fill(self, slot: _Slot, row: int, values: torch.Tensor) -> None:
        """Append the part of a band that belongs to the chunk."""
        rows = slot.chunk.sizes[-2] if values.dim() > 1 else slot.chunk.sizes[-1]
        begin, end = max(row, slot.first_row), min(row + len(values), slot.first_row + rows)
        if begin >= end:
            return
        part = values[begin - row : end - row]
        if values.dim() > 1:
            part = part[:, slot.first_column : slot.first_column + slot.chunk.sizes[-1]]
        self._append(slot, part.contiguous().view(-1).view(torch.uint8).numpy().data)

    def _close(self, key: str, slot: _Slot) -> None:
        self._append(slot, memoryview(slot.after))
        length = slot.cursor - slot.begin
        self.stored.append(StoredChunk(key, slot.chunk, slot.begin, length, slot.digest.hexdigest()))

    def _append(self, slot: _Slot, data: memoryview) -> None:
        slot.digest.update(data)
        self._file.write_at(data, slot.cursor)
        slot.cursor += len(data)
