"""Writing one safetensors file band by band: the layout first, then the payloads, the name at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch
import xxhash

from r1hpc.checkpoint.positioned import PositionedWriter
from r1hpc.checkpoint.safetensors_file import ITEM_BYTES, header_bytes
from r1hpc.errors import CheckpointError
from r1hpc.publish import publishing

Layout = Sequence[tuple[str, str, Sequence[int]]]
"""(tensor name, dtype as the format writes it, shape) in the order of the payloads."""


@dataclass
class _Slot:
    """A tensor that is being written, front to back."""

    position: int
    """Where its next byte goes in the file."""
    left: int
    digest: xxhash.xxh3_64 = field(default_factory=xxhash.xxh3_64)


class ShardWriter:
    """Takes the payloads of a file, each from its beginning, in any order; knows the hash of each that is complete."""

    def __init__(self, stream: BinaryIO, layout: Layout) -> None:
        self.hashes: dict[str, str] = {}
        """xxh3_64 of each complete tensor's bytes."""
        self.current = "the header"
        """The tensor written last."""
        self._file = PositionedWriter(stream.fileno())
        self._slots: dict[str, _Slot] = {}
        header = header_bytes(layout)
        self.size_bytes = len(header)
        for name, dtype, shape in layout:
            count = math.prod(shape) * ITEM_BYTES[dtype]
            self._slots[name] = _Slot(self.size_bytes, count)
            self.size_bytes += count
        self._file.write_at(memoryview(header), 0)

    def append(self, name: str, values: torch.Tensor) -> None:
        """Write the next band of a tensor of the layout."""
        self.current = name
        slot = self._slots[name]
        data = values.contiguous().view(-1).view(torch.uint8).numpy().data
        assert len(data) <= slot.left, f"{name}: {len(data)} bytes where {slot.left} are left"
        slot.digest.update(data)
        self._file.write_at(data, slot.position)
        slot.position += len(data)
        slot.left -= len(data)
        if not slot.left:
            self.hashes[name] = slot.digest.hexdigest()

    def finish(self) -> None:
        """Refuse a file that lacks a payload."""
        lacking = [name for name in self._slots if name not in self.hashes]
        assert not lacking, f"{len(lacking)} tensors were not written, the first {lacking[0]}"


@contextmanager
def writing_shard(path: Path, layout: Layout, beside: Path | None = None) -> Iterator[ShardWriter]:
    """A writer whose file is published as `path` when the block ends well; of a failed one nothing is left.

    The block may read, but whatever reads has to turn its own OSError into something else.
    beside: directory of the temporary file; null means that of `path`.
    Raises CheckpointError naming file and tensor when the file system refuses.
    """
    writer = None
    try:
        with publishing(path, beside) as stream:
            writer = ShardWriter(stream, layout)
            yield writer
            writer.finish()
    except OSError as error:
        where = writer.current if writer else "the header"
        raise CheckpointError(
            f"{path}: cannot be written at {where} ({error.strerror}); nothing was published"
        ) from error
