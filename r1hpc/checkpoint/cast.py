"""Block fp8 to bf16: every file of a Hugging Face checkpoint by itself, the index when all are there.

A file is cast by one worker, band by band, and appears by rename with a part, the record of its hashes, after it. Tasks
share no state but these parts, so any of them may be killed and started again; whoever finds all parts publishes.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1hpc.checkpoint.bands import BandReader
from r1hpc.checkpoint.companions import copy_companions, publish_config, publish_index
from r1hpc.checkpoint.hf_checkpoint import FP8, INDEX, MANIFEST, HfCheckpoint, open_checkpoint
from r1hpc.checkpoint.progress import Progress
from r1hpc.checkpoint.records import read_record
from r1hpc.checkpoint.safetensors_file import ITEM_BYTES, TensorEntry
from r1hpc.checkpoint.shard_writer import writing_shard
from r1hpc.checkpoint.shares import deal_largest_first
from r1hpc.checkpoint.space import bytes_of, require_space
from r1hpc.checkpoint.task_outcome import TaskOutcome
from r1hpc.checkpoint.workers import Advance, run_units
from r1hpc.errors import CheckpointError
from r1hpc.publish import publish_json, remove_stale

FORMAT = 1
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
        return sum(cast_bytes(entry) for entry in self.entries)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Cast:
    """A cast of one source into one directory."""

    source: HfCheckpoint
    target: Path
    files: tuple[CastFile, ...]

    @property
    def parts(self) -> Path:
        """Directory of the records of the files that are done; another source has another one."""
        return self.target / _STAGING / self.source.identity

    def part(self, file: CastFile) -> Path:
        """The record of one file."""
        return self.parts / f"{file.name}.json"


def cast_dtype(entry: TensorEntry) -> str:
    """The dtype of a tensor after the cast: fp8 becomes bf16, everything else stays."""
    return "BF16" if entry.dtype == FP8 else entry.dtype


def cast_bytes(entry: TensorEntry) -> int:
    """Bytes of a tensor after the cast."""
    return math.prod(entry.shape) * ITEM_BYTES[cast_dtype(entry)]


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


def run_cast_task(
    cast: Cast, index: int, num_tasks: int, num_workers: int, say: Callable[[str], None], every_s: float = 10.0
) -> TaskOutcome:
    """Cast this task's files that are not done, and publish the checkpoint when all are.

    Raises CheckpointError when the target holds another checkpoint, room is short, or a tensor cannot be cast.
    """
    if is_published(cast):
        say(f"{cast.target} is complete")
        return TaskOutcome(True, 0, 0)
    _open_target(cast)
    mine = deal_largest_first(cast.files, lambda file: file.size_bytes, [0] * num_tasks)[index]
    missing = [file for file in mine if not _is_done(cast, file)]
    for file in missing:
        remove_stale(cast.target / file.name)
    _require_space(cast)
    progress = Progress(
        f"cast, task {index + 1} of {num_tasks}", sum(file.size_bytes for file in missing), say, every_s
    )
    done = run_units(missing, lambda file, advance: _cast_file(cast, file, advance), num_workers, progress)
    published = publish_if_complete(cast)
    say(f"{cast.target} is complete" if published else "the other tasks are not done yet; the last one publishes")
    return TaskOutcome(published, progress.total_bytes, done.peak_bytes)


def is_published(cast: Cast) -> bool:
    """Whether the target is this very cast, complete. Raises CheckpointError when it is another checkpoint."""
    if not (cast.target / INDEX).exists():
        return False
    manifest = read_record(cast.target / MANIFEST)
    if manifest.get("source", {}).get("identity") != cast.source.identity:
        raise CheckpointError(
            f"{cast.target}: already holds a checkpoint that was not cast from {cast.source.directory} as it is now; "
            "choose another ckpt.bf16_checkpoint, or remove the directory"
        )
    files: Mapping[str, Any] = manifest["files"]
    return all(_has_size(cast.target / name, record["size"]) for name, record in files.items())


def publish_if_complete(cast: Cast) -> bool:
    """Publish manifest, companions, configuration and, last, the index, when every file is done.

    Two tasks may do it at once: they write the same bytes.
    """
    try:
        parts = {file.name: read_record(cast.part(file)) for file in cast.files}
        if not all(parts.values()):
            return is_published(cast)
        manifest = {
            "format": FORMAT,
            "files": {name: {"size": part["size"], "tensors": part["tensors"]} for name, part in parts.items()},
            "source": {"path": str(cast.source.directory), "identity": cast.source.identity},
        }
        publish_json(cast.target / MANIFEST, manifest)
        copy_companions(cast.source.directory, cast.target)
        publish_config(cast.source.config, cast.target, quantized=False)
        weight_map = {entry.name: file.name for file in cast.files for entry in file.entries}
        publish_index(cast.target, weight_map, sum(file.size_bytes for file in cast.files))
    except OSError as error:
        raise CheckpointError(f"{cast.target}: cannot be published ({error}); run the task again") from error
    for file in cast.files:
        remove_stale(cast.target / file.name)
    shutil.rmtree(cast.parts, ignore_errors=True)
    with suppress(OSError):
        cast.parts.parent.rmdir()  # unless it holds something else
    return True


def _open_target(cast: Cast) -> None:
    try:
        cast.parts.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{cast.target}: cannot be made ({error.strerror}); set ckpt.bf16_checkpoint") from error
    for other in (cast.target / _STAGING).iterdir():
        if other != cast.parts:
            # Files of the same names will be written over: the records of another source would lie.
            shutil.rmtree(other, ignore_errors=True)


def _require_space(cast: Cast) -> None:
    left = sum(file.size_bytes for file in cast.files if not _is_done(cast, file))
    require_space(cast.target, left - bytes_of(cast.target, ".*.tmp"), "the cast")


def _is_done(cast: Cast, file: CastFile) -> bool:
    part = read_record(cast.part(file))
    return bool(part) and _has_size(cast.target / file.name, part["size"])


def _has_size(file: Path, size_bytes: int) -> bool:
    try:
        return file.stat().st_size == size_bytes
    except FileNotFoundError:
        return False


def _cast_file(cast: Cast, file: CastFile, advance: Advance) -> None:
    reader = BandReader(cast.source)
    try:
        with writing_shard(cast.target / file.name, file.layout) as writer:
            for entry in file.entries:
                for _, values in reader.bands(entry.name):
                    writer.append(entry.name, values)
                    advance(values.nbytes)
    finally:
        reader.close()
    publish_json(cast.part(file), {"size": writer.size_bytes, "tensors": writer.hashes})
