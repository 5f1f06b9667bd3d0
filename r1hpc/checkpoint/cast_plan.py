"""What one cast is: its source, its target, the files of the result, and where the work in progress lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1hpc.checkpoint.hf_checkpoint import FP8, HfCheckpoint, open_checkpoint
from r1hpc.checkpoint.records import read_record
from r1hpc.checkpoint.safetensors_file import ITEM_BYTES, TensorEntry
from r1hpc.checkpoint.shares import deal_largest_first
from r1hpc.checkpoint.space import has_size
from r1hpc.errors import CheckpointError

_STAGING = ".cast"


@dataclass(frozen=True)
class CastFile:
    """One file to be written."""

    name: str
    entries: tuple[TensorEntry, ...]
    """Of the source file, scales left out, in the order of the new one."""

    @property
    def layout(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """Name, dtype and shape of each tensor of the new file."""
        return tuple((entry.name, cast_dtype(entry), entry.shape) for entry in self.entries)

    @property
    def size_bytes(self) -> int:
        """Payload of the new file."""
        return sum(math.prod(entry.shape) * ITEM_BYTES[cast_dtype(entry)] for entry in self.entries)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Cast:
    """A cast of one source into one directory; the same for every task of it."""

    source: HfCheckpoint
    target: Path
    files: tuple[CastFile, ...]

    @property
    def stagings(self) -> Path:
        """Directory of all work in progress in `target`."""
        return self.target / _STAGING

    @property
    def staging(self) -> Path:
        """Everything of this cast before it is published; another source has another one."""
        return self.stagings / self.source.identity

    def staged(self, file: CastFile) -> Path:
        """Where a complete file waits for the others."""
        return self.staging / file.name

    def part(self, file: CastFile) -> Path:
        """The record of a file that is done."""
        return self.staging / "parts" / f"{file.name}.json"

    def record(self, file: CastFile) -> Mapping[str, Any]:
        """What the record says, {} for a file that is not done: staged, or in its place already."""
        record = read_record(self.part(file))
        places = (self.staged(file), self.target / file.name)
        return record if record and any(has_size(place, record["size"]) for place in places) else {}

    def files_of_task(self, index: int, num_tasks: int) -> list[CastFile]:
        """This task's files: those of all tasks have nearly equal bytes."""
        return deal_largest_first(self.files, lambda file: file.size_bytes, [0] * num_tasks)[index]


def cast_dtype(entry: TensorEntry) -> str:
    """The dtype of a tensor after the cast: fp8 becomes bf16, everything else stays."""
    return "BF16" if entry.dtype == FP8 else entry.dtype


def plan_cast(source: Path, target: Path) -> Cast:
    """Read all headers and lay out every new file.

    Raises CheckpointProblems or CheckpointError for a source that is incomplete, or that has nothing in fp8.
    """
    checkpoint = open_checkpoint(source)
    if not checkpoint.has_fp8:
        raise CheckpointError(
            f"{source}: holds no fp8 weights, so there is nothing to cast; leave ckpt.bf16_checkpoint out (null)"
        )
    if target.resolve() == source.resolve():
        raise CheckpointError(f"{target}: is the source itself; set ckpt.bf16_checkpoint to another directory")
    wanted = {name.hf for name in checkpoint.names}
    files = []
    for header in checkpoint.headers:
        entries = [entry for entry in header.tensors if entry.name in wanted]
        # Wide ones first, or the payloads after an odd one would not be aligned; else in the order of reading.
        entries.sort(key=lambda entry: -ITEM_BYTES[cast_dtype(entry)])
        if entries:
            files.append(CastFile(header.file.name, tuple(entries)))
    return Cast(checkpoint, target, tuple(files))
