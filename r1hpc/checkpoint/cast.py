"""Block fp8 to bf16: every file of a Hugging Face checkpoint by itself, band by band."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from r1hpc.checkpoint.bands import BandReader
from r1hpc.checkpoint.companions import copy_companions, publish_config, publish_index
from r1hpc.checkpoint.hf_checkpoint import FP8, MANIFEST, HfCheckpoint, open_checkpoint, read_manifest
from r1hpc.checkpoint.recorded_hashes import recorded_hashes, require_recorded
from r1hpc.checkpoint.safetensors_file import ITEM_BYTES, TensorEntry
from r1hpc.checkpoint.shard_writer import writing_shard
from r1hpc.checkpoint.shares import deal_largest_first
from r1hpc.checkpoint.staged_work import Records, StagedWork, Steps, run_task
from r1hpc.checkpoint.task_outcome import TaskOutcome
from r1hpc.checkpoint.workers import Advance
from r1hpc.errors import CheckpointError
from r1hpc.publish import publish_json

FORMAT = 1


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
class Cast(StagedWork[CastFile]):
    """A cast of one source into one directory; the same for every task of it."""

    source: HfCheckpoint
    target: Path
    files: tuple[CastFile, ...]
    what = "cast"
    setting = "ckpt.bf16_checkpoint"

    @property
    def final(self) -> Path:
        """The bf16 checkpoint."""
        return self.target

    @property
    def stagings(self) -> Path:
        """Beside the target, which becomes it by a rename."""
        return self.target.parent / f".{self.target.name}.cast"

    @property
    def identity(self) -> str:
        """The source decides everything."""
        return self.source.identity

    def identity_found(self) -> object:
        """That of the source on record."""
        return read_manifest(self.target).get("source", {}).get("identity")

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
    # A link keeps its place: what it points to is what appears, and the work lies beside that.
    target = Path(os.path.realpath(target))
    if target == source.resolve():
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


def run_cast_task(
    cast: Cast, index: int, num_tasks: int, num_workers: int, say: Callable[[str], None], every_s: float = 10.0
) -> TaskOutcome:
    """Cast this task's files that are not done, and publish the checkpoint when all are.

    Raises CheckpointError when the target holds another checkpoint, room is short, or a tensor cannot be cast.
    """
    recorded = recorded_hashes(cast.source)
    steps = Steps[CastFile](
        write=lambda file, advance: _write(cast, file, recorded, advance),
        complete=lambda records: _complete(cast, records),
    )
    title = f"task {index + 1} of {num_tasks}"
    return run_task(cast, steps, cast.files_of_task(index, num_tasks), num_workers, title, say, every_s)


def _write(cast: Cast, file: CastFile, recorded: Mapping[str, str], advance: Advance) -> None:
    path = cast.staged / file.name
    with closing(BandReader(cast.source)) as reader, writing_shard(path, file.layout, cast.temporary) as writer:
        for entry in file.entries:
            for _, values in reader.bands(entry.name):
                writer.append(entry.name, values)
                advance(values.nbytes)
        reader.check_unchanged()
        require_recorded(reader, recorded)
    publish_json(cast.part(file), {"size": writer.size_bytes, "tensors": writer.hashes})


def _complete(cast: Cast, records: Records) -> None:
    """Manifest, companions, configuration and index."""
    manifest = {
        "format": FORMAT,
        "files": {name: {"size": record["size"], "tensors": record["tensors"]} for name, record in records.items()},
        "source": {"path": str(cast.source.directory.resolve()), "identity": cast.identity},
    }
    publish_json(cast.staged / MANIFEST, manifest, cast.temporary)
    copy_companions(cast.source.directory, cast.staged, cast.temporary)
    publish_config(cast.source.config, cast.staged, quantized=False, beside=cast.temporary)
    weight_map = {entry.name: file.name for file in cast.files for entry in file.entries}
    publish_index(cast.staged, weight_map, sum(file.size_bytes for file in cast.files), cast.temporary)
