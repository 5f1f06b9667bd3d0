"""The safetensors format, as far as streaming needs it: where each tensor lies in a file, and the header of a new one.

The safetensors library maps whole files and writes from tensors in memory; a shard of several GB, read and written
through a few MB, needs the offsets. Format: 8 bytes header length, JSON header, payloads (huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from r1hpc.errors import CheckpointError

ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of one element, by the format's names."""
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000
"""The library refuses longer ones."""
_ALIGNMENT = 8
_SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies."""

    name: str
    file: Path
    dtype: str
    """As the format writes it: BF16, F32, F8_E4M3."""
    shape: tuple[int, ...]
    begin: int
    """First byte in the file."""
    end: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the payload."""
        return self.end - self.begin


@dataclass(frozen=True)
class Header:
    """What one safetensors file says of itself."""

    file: Path
    tensors: tuple[TensorEntry, ...]
    size_bytes: int
    """Of the whole file."""
    modified_s: int
    """Whole seconds: finer stamps differ between the clients of some file systems."""
    sample: str
    """xxh3_64 of the first and the last 4 kB of payload: revisions of a model may have equal headers and times."""


def read_header(file: Path) -> Header:
    """The header of `file`, checked against the file's size.

    Raises CheckpointError when the file is missing, cut short, longer than its header says, or no safetensors file.
    """
    try:
        with open(file, "rb") as stream:
            status = os.fstat(stream.fileno())
            raw, length = _read_json_bytes(stream.read(_LENGTH_BYTES), stream.read, file)
            sample = xxhash.xxh3_64(stream.read(_SAMPLE_BYTES))
            stream.seek(max(length, status.st_size - _SAMPLE_BYTES))
            sample.update(stream.read(_SAMPLE_BYTES))
    except OSError as error:
        raise CheckpointError(
            f"{file}: cannot be read ({error.strerror}); every shard of the index has to be there"
        ) from error
    try:
        values = json.loads(raw)
        tensors = [_entry(name, value, file, length) for name, value in values.items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: is no safetensors file (its header cannot be read: {error})") from error
    tensors.sort(key=lambda entry: entry.begin)
    _check_layout(file, tensors, length, status.st_size)
    return Header(file, tuple(tensors), status.st_size, int(status.st_mtime), sample.hexdigest())


def header_bytes(tensors: Iterable[tuple[str, str, Sequence[int]]]) -> bytes:
    """The beginning of a new file that holds (name, dtype, shape) in this order, without gaps.

    `{"format": "pt"}` is what transformers asks for. Wide dtypes must come first, or payloads would be misaligned.
    """
    values: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dtype, shape in tensors:
        end = position + math.prod(shape) * ITEM_BYTES[dtype]
        values[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(values, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % _ALIGNMENT)
    return struct.pack("<Q", len(raw)) + raw


def _read_json_bytes(prefix: bytes, read: Any, file: Path) -> tuple[bytes, int]:
    """The header's JSON, and where the payloads begin."""
    if len(prefix) < _LENGTH_BYTES:
        raise CheckpointError(
            f"{file}: has {len(prefix)} bytes, too few for a safetensors header; fetch the file again"
        )
    (length,) = struct.unpack("<Q", prefix)
    if length > _MAX_HEADER_BYTES:
        raise CheckpointError(f"{file}: is no safetensors file (a header of {length} bytes)")
    raw: bytes = read(length)
    if len(raw) < length:
        raise CheckpointError(f"{file}: is cut short within its header of {length} bytes; fetch the file again")
    return raw, _LENGTH_BYTES + length


def _entry(name: str, value: dict[str, Any], file: Path, start: int) -> TensorEntry:
    begin, end = value["data_offsets"]
    dtype, shape = value["dtype"], tuple(value["shape"])
    if dtype not in ITEM_BYTES:
        raise CheckpointError(f"{file}: {name} has dtype {dtype}; known: {', '.join(ITEM_BYTES)}")
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if end - begin != expected:
        raise CheckpointError(
            f"{file}: {name} {list(shape)} {dtype} takes {expected} bytes, its header gives it {end - begin}"
        )
    return TensorEntry(name, file, dtype, shape, start + begin, start + end)


def _check_layout(file: Path, tensors: Sequence[TensorEntry], start: int, size: int) -> None:
    position = start
    for entry in tensors:
        if entry.begin != position:
            raise CheckpointError(
                f"{file}: {entry.name} begins at byte {entry.begin}, the tensor before it ends at {position}"
            )
        position = entry.end
    if position > size:
        cut = next(entry for entry in tensors if entry.end > size)
        raise CheckpointError(
            f"{file}: has {size} bytes, its header asks for {position}: it is cut short within {cut.name}; "
            "fetch the file again"
        )
    if position < size:
        raise CheckpointError(f"{file}: has {size} bytes, its header accounts for {position}; fetch the file again")
