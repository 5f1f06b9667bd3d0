"""Reading any box of a tensor of a torch_dist checkpoint, whatever the grid of chunks that it is stored in.

A chunk is an archive of torch.save whose payload is one run of bytes: only the part that is wanted is read, straight
into place, so memory is that of the box.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.checkpoint.utils import _create_file_view

from r1hpc.checkpoint.boxes import Box, coverage_problem, whole
from r1hpc.checkpoint.torch_dist import Chunk, Extent, StoredTensor, TorchDist
from r1hpc.errors import CheckpointError

_MAX_OPEN = 32

assert sys.byteorder == "little", "payloads are little-endian"


class _Unreadable(Exception):
    """A chunk that is not what the metadata says, in words of ours."""


@dataclass(frozen=True)
class _Payload:
    """Where the elements of a chunk begin in its file; null where they do not lie in order."""

    begin: int | None


class ChunkReader:
    """Reads payloads of one checkpoint. Keeps a few files open, and where each payload was found."""

    def __init__(self, checkpoint: TorchDist) -> None:
        self.checkpoint = checkpoint
        self._files: dict[str, int] = {}
        self._payloads: dict[Extent, _Payload] = {}
        self._fake = FakeTensorMode()
        with self._fake:
            torch.empty(0)  # loads what the mode needs, a second's work, here: before workers are forked

    def read_box(self, key: str, box: Box, out: Tensor | None = None) -> Tensor:
        """The elements of `box` in the tensor `key`, in the dtype that it is stored in.

        out: a contiguous tensor of the box's sizes and that dtype to read into; null makes one. Raises CheckpointError
        naming key, file and box where the checkpoint has no such tensor, not all of the box, or a broken file.
        """
        tensor = self.checkpoint.tensors.get(key)
        if tensor is None:
            raise CheckpointError(f"{self.checkpoint.directory}: has no tensor {key}")
        if out is None:
            out = torch.empty(box.sizes, dtype=tensor.dtype)
        parts = list(tensor.meeting(box))
        if problem := coverage_problem(box, [common for _, common in parts]):
            raise CheckpointError(f"{self.checkpoint.directory}: {key} {box} cannot be read: {problem}")
        for chunk, common in parts:
            self._read_part(tensor, chunk, common, out[common.slices_in(box)])
        return out

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _read_part(self, tensor: StoredTensor, chunk: Chunk, part: Box, target: Tensor) -> None:
        with self._naming(tensor, chunk):
            payload = self._payload(tensor, chunk)
            if payload.begin is None:
                target.copy_(self._load(chunk.extent)[part.slices_in(chunk.box)])
                return
            span = _span(part, chunk.box)
            begin = payload.begin + _first_element(span, chunk.box) * tensor.dtype.itemsize
            if span == part and target.is_contiguous():
                self._read(chunk.extent.file, begin, target)
            else:
                values = torch.empty(span.sizes, dtype=tensor.dtype)
                self._read(chunk.extent.file, begin, values)
                target.copy_(values[part.slices_in(span)])

    def _payload(self, tensor: StoredTensor, chunk: Chunk) -> _Payload:
        """Look into the archive, without its payload, once for each chunk."""
        if (known := self._payloads.get(chunk.extent)) is not None:
            return known
        with self._fake:
            # Under this mode torch.load makes no payload and says where each would begin in the stream.
            stored = self._load(chunk.extent)
        if stored.dtype != tensor.dtype or tuple(stored.shape) != chunk.box.sizes:
            raise _Unreadable(
                f"it holds {list(stored.shape)} {stored.dtype} where the metadata says {list(chunk.box.sizes)} "
                f"{tensor.dtype}"
            )
        start = stored.untyped_storage()._checkpoint_offset if stored.is_contiguous() else None
        begin = None
        if start is not None:
            begin = chunk.extent.offset + start + int(stored.storage_offset()) * stored.dtype.itemsize
        return self._payloads.setdefault(chunk.extent, _Payload(begin))

    def _load(self, extent: Extent) -> Tensor:
        with open(os.dup(self._open(extent.file)), "rb") as stream:
            view = cast("IO[bytes]", _create_file_view(stream, extent.offset, extent.length))
            stored = torch.load(view, map_location="cpu", weights_only=True)
        if not isinstance(stored, Tensor):
            raise _Unreadable(f"it holds {type(stored).__name__} where the metadata says that it is a tensor")
        return stored.detach()

    def _read(self, file: str, begin: int, target: Tensor) -> None:
        left = target.view(-1).view(torch.uint8).numpy().data
        descriptor = self._open(file)
        while left:
            got = os.preadv(descriptor, [left], begin)
            if got == 0:
                raise _Unreadable("the file ends within it")
            left, begin = left[got:], begin + got

    def _open(self, file: str) -> int:
        if file not in self._files:
            if len(self._files) == _MAX_OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[file] = os.open(self.checkpoint.directory / file, os.O_RDONLY)
        return self._files[file]

    @contextmanager
    def _naming(self, tensor: StoredTensor, chunk: Chunk) -> Iterator[None]:
        """Whatever a broken archive makes torch raise, named; its own words are advice to whoever calls torch.load."""
        try:
            yield
        except Exception as error:
            reason = "its bytes are no archive of a tensor: the file is damaged"
            if isinstance(error, _Unreadable):
                reason = str(error)
            elif isinstance(error, OSError):
                reason = error.strerror or type(error).__name__
            raise CheckpointError(
                f"{self.checkpoint.directory / chunk.extent.file}: {tensor.key} {chunk.box} at byte "
                f"{chunk.extent.offset} cannot be read: {reason}"
            ) from error


def read_tensor(reader: ChunkReader, key: str) -> Tensor:
    """A whole tensor of the checkpoint."""
    return reader.read_box(key, whole(reader.checkpoint.tensors[key].shape))


def _span(part: Box, chunk: Box) -> Box:
    """The smallest run of consecutive elements of `chunk`, as a box, that holds `part`: `part` itself where it is one.

    That is one: a single index on the leading axes, a range on one, all of those after it.
    """
    axis = 0
    while axis < len(part.sizes) and part.sizes[axis] == 1:
        axis += 1
    tail = axis + 1
    return Box(part.offset[:tail] + chunk.offset[tail:], part.sizes[:tail] + chunk.sizes[tail:])


def _first_element(span: Box, chunk: Box) -> int:
    """Index of a span's first element among those of its chunk in order."""
    strides = [math.prod(chunk.sizes[axis + 1 :]) for axis in range(len(chunk.sizes))]
    return sum((mine - base) * stride for mine, base, stride in zip(span.offset, chunk.offset, strides, strict=True))
