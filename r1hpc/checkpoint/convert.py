"""Hugging Face to torch_dist by independent tasks: no process group, no model, no order among them.

Megatron stores gate and up, and every expert, as chunks of their own, so conversion is renaming and placing: bands of
the source go straight into the archives of the target, and memory does not depend on the size of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

from r1hpc.checkpoint.bands import BandReader
from r1hpc.checkpoint.conversion import Conversion, ConvertFile, source_hashes
from r1hpc.checkpoint.distcp import DistcpWriter, as_json
from r1hpc.checkpoint.names import TensorName
from r1hpc.checkpoint.progress import Progress
from r1hpc.checkpoint.records import read_record
from r1hpc.checkpoint.release import claim_root, is_published, publish_if_complete
from r1hpc.checkpoint.space import bytes_of, has_size, require_space
from r1hpc.checkpoint.task_outcome import TaskOutcome
from r1hpc.checkpoint.workers import Advance, run_units
from r1hpc.errors import CheckpointError
from r1hpc.publish import publish_json, publishing, remove_stale


def run_convert_task(
    conversion: Conversion,
    index: int,
    num_tasks: int,
    num_workers: int,
    say: Callable[[str], None],
    *,
    recheck: bool = True,
    every_s: float = 10.0,
) -> TaskOutcome:
    """Write this task's files that are not done, and publish the checkpoint when all are.

    recheck: whoever publishes reads every file again and compares hashes.
    Raises CheckpointError when the target holds something else, when room is short, or when a tensor cannot be read.
    """
    claim_root(conversion)
    written = peak = 0
    if missing := _missing(conversion, index, num_tasks):
        for file in missing:
            remove_stale(conversion.staged / file.name, conversion.temporary)
        _require_space(conversion)
        written = sum(file.size_bytes for file in missing)
        progress = Progress(f"convert, task {index + 1} of {num_tasks}", written, say, every_s)
        expected = source_hashes(conversion.source)
        try:
            done = run_units(
                missing, lambda file, advance: _write_file(conversion, file, expected, advance), num_workers, progress
            )
            peak = done.peak_bytes
        except CheckpointError:
            # Another run of this very task may have finished first, and published: then its directory is gone.
            claim_root(conversion)
            if not is_published(conversion):
                raise
    published = publish_if_complete(conversion, num_workers, say, recheck=recheck, every_s=every_s)
    say(f"{conversion.root} is complete" if published else "the other tasks are not done yet; the last one publishes")
    return TaskOutcome(published, written, peak)


def convert_all(conversion: Conversion, num_workers: int, say: Callable[[str], None]) -> TaskOutcome:
    """Every slice in one task."""
    return run_convert_task(conversion, 0, 1, num_workers, say)


def _missing(conversion: Conversion, index: int, num_tasks: int) -> list[ConvertFile]:
    """This task's files that are not done."""
    if is_published(conversion):
        return []
    try:
        for folder in (conversion.staged, conversion.temporary, conversion.staging / "parts"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{conversion.root}: cannot be made ({error.strerror}); set ckpt.ref_load") from error
    missing = [file for file in conversion.files_of_task(index, num_tasks) if not _is_done(conversion, file)]
    # Asked again: whoever has published between these lines has taken the records away.
    return [] if is_published(conversion) else missing


def _require_space(conversion: Conversion) -> None:
    left = sum(file.size_bytes for file in conversion.files if not _is_done(conversion, file))
    require_space(conversion.staging, left - bytes_of(conversion.temporary, ".*.tmp"), "the conversion")


def _is_done(conversion: Conversion, file: ConvertFile) -> bool:
    part = read_record(conversion.part(file))
    return bool(part) and has_size(conversion.staged / file.name, part["size"])


def _write_file(conversion: Conversion, file: ConvertFile, expected: Mapping[str, str], advance: Advance) -> None:
    path = conversion.staged / file.name
    try:
        with closing(BandReader(conversion.source)) as reader, publishing(path, conversion.temporary) as stream:
            writer = DistcpWriter(stream, conversion.pieces)
            for name in file.names:
                _write_tensor(writer, reader, name, advance)
                _compare(reader, name.hf, expected)
            reader.check_unchanged()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error}); run the task again") from error
    part = {"size": writer.size_bytes, "chunks": [as_json(chunk) for chunk in writer.stored], "sources": reader.hashes}
    publish_json(conversion.part(file), part)


def _write_tensor(writer: DistcpWriter, reader: BandReader, name: TensorName, advance: Advance) -> None:
    """A copy is only read: its hash must be that of the tensor it repeats, which whoever publishes compares."""
    bands = reader.bands(name.hf)
    if name.copy_of:
        for _ in bands:
            pass
        return
    for size_bytes in writer.write(name, bands):
        advance(size_bytes)


def _compare(reader: BandReader, name: str, expected: Mapping[str, str]) -> None:
    if name in expected and reader.hashes[name] != expected[name]:
        file = reader.checkpoint.entries[name].file
        raise CheckpointError(
            f"{file}: {name} has xxh3 {reader.hashes[name]}; the cast wrote {expected[name]}: the file has changed "
            "since; remove it and cast again"
        )
