"""The files of one rank: boxes streamed from where they lie, one archive after another, each hashed on its way.

Nothing is copied that lies in host memory; hashing and writing release the interpreter lock, so a thread can do it
while the rank does something else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
import xxhash
from torch import Tensor

from r1hpc.checkpoint.distcp import StoredChunk
from r1hpc.checkpoint.envelope import envelope
from r1hpc.checkpoint.layout import Chunk
from r1hpc.checkpoint.positioned import PositionedWriter
from r1hpc.train.checkpoint.plan import Item

FILE_BYTES = 4 << 30
"""A file is closed before it grows beyond this, unless one box is larger."""
SLICE_BYTES = 8 << 20
"""Hashed and written at once; what is copied of a tensor that lies on a GPU."""


@dataclass(frozen=True)
class WrittenFile:
    """A file that is complete and on the disk."""

    name: str
    size_bytes: int
    chunks: tuple[StoredChunk, ...]


class BoxFiles:
    """Writes items into files `__{rank}_{n}.distcp` of a directory."""

    def __init__(self, directory: Path, rank: int, file_bytes: int = FILE_BYTES) -> None:
        self.written: list[WrittenFile] = []
        self._directory = directory
        self._rank = rank
        self._file_bytes = file_bytes
        self._created: list[Path] = []

    def write(self, items: Iterable[Item]) -> Iterator[int]:
        """Write all of them; yields the payload bytes of each slice. Raises OSError naming the file."""
        left = iter(items)
        item = next(left, None)
        while item is not None:
            path = self._directory / f"__{self._rank}_{len(self.written)}.distcp"
            self._created.append(path)
            with open(path, "xb", buffering=0) as stream:
                file = _OpenFile(stream)
                try:
                    while item is not None and (not file.size_bytes or file.fits(item, self._file_bytes)):
                        yield from file.append(item)
                        item = next(left, None)
                    os.fsync(stream.fileno())
                except OSError as error:
                    raise OSError(error.errno, error.strerror, str(path)) from error
            self.written.append(WrittenFile(path.name, file.size_bytes, tuple(file.chunks)))

    def remove(self) -> None:
        """Remove every file that was begun."""
        for path in self._created:
            path.unlink(missing_ok=True)


class _OpenFile:
    """A file that archives are appended to."""

    def __init__(self, stream: BinaryIO) -> None:
        self.size_bytes = 0
        self.chunks: list[StoredChunk] = []
        self._writer = PositionedWriter(stream.fileno())
        self._digest = xxhash.xxh3_64()

    def fits(self, item: Item, file_bytes: int) -> bool:
        before, after = envelope(item.flat.dtype, item.box.sizes)
        return self.size_bytes + len(before) + item.flat.nbytes + len(after) <= file_bytes

    def append(self, item: Item) -> Iterator[int]:
        before, after = envelope(item.flat.dtype, item.box.sizes)
        begin = self.size_bytes
        self._digest.reset()
        self._put(memoryview(before))
        for part in _slices(item.flat):
            self._put(part)
            yield len(part)
        self._put(memoryview(after))
        chunk = Chunk(item.box.offset, item.box.sizes)
        self.chunks.append(StoredChunk(item.key, chunk, begin, self.size_bytes - begin, self._digest.hexdigest()))

    def _put(self, data: memoryview) -> None:
        self._digest.update(data)
        self._writer.write_at(data, self.size_bytes)
        self.size_bytes += len(data)


def _slices(flat: Tensor) -> Iterator[memoryview]:
    """The bytes of a flat tensor, SLICE_BYTES at a time."""
    assert flat.dim() == 1 and flat.is_contiguous()
    data = flat.detach().view(torch.uint8)
    for begin in range(0, data.numel(), SLICE_BYTES):
        # On the host it is there already: cpu() copies what lies on a GPU only.
        yield data[begin : begin + SLICE_BYTES].cpu().numpy().data
