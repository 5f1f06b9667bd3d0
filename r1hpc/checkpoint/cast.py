"""Block fp8 to bf16: every file of a Hugging Face checkpoint by itself, the index when all are there.

A file is cast by one worker, band by band, and appears by rename with a part, the record of its hashes, after it. Tasks
share no state but these parts, so any of them may be killed and started again; whoever finds all parts publishes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from r1hpc.checkpoint.bands import BandReader
from r1hpc.checkpoint.cast_plan import Cast, CastFile, plan_cast
from r1hpc.checkpoint.cast_publication import claim_target, is_published, publish_if_complete
from r1hpc.checkpoint.progress import Progress
from r1hpc.checkpoint.shard_writer import writing_shard
from r1hpc.checkpoint.space import bytes_of, require_space
from r1hpc.checkpoint.task_outcome import TaskOutcome
from r1hpc.checkpoint.workers import Advance, run_units
from r1hpc.errors import CheckpointError
from r1hpc.publish import publish_json, remove_stale

__all__ = ["plan_cast", "run_cast_task"]


def run_cast_task(
    cast: Cast, index: int, num_tasks: int, num_workers: int, say: Callable[[str], None], every_s: float = 10.0
) -> TaskOutcome:
    """Cast this task's files that are not done, and publish the checkpoint when all are.

    Raises CheckpointError when the target holds another checkpoint, room is short, or a tensor cannot be cast.
    """
    claim_target(cast)
    written = peak = 0
    if missing := _missing(cast, index, num_tasks):
        for file in missing:
            remove_stale(cast.staged(file))
        _require_space(cast)
        written = sum(file.size_bytes for file in missing)
        progress = Progress(f"cast, task {index + 1} of {num_tasks}", written, say, every_s)
        try:
            done = run_units(missing, lambda file, advance: _cast_file(cast, file, advance), num_workers, progress)
            peak = done.peak_bytes
        except CheckpointError:
            # Another run of this very task may have finished first, and published: then its directory is gone.
            claim_target(cast)
            if not is_published(cast):
                raise
    published = publish_if_complete(cast)
    say(f"{cast.target} is complete" if published else "the other tasks are not done yet; the last one publishes")
    return TaskOutcome(published, written, peak)


def _missing(cast: Cast, index: int, num_tasks: int) -> list[CastFile]:
    """This task's files that are not done."""
    if is_published(cast):
        return []
    try:
        for folder in (cast.staging, cast.staging / "parts"):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{cast.target}: cannot be made ({error.strerror}); set ckpt.bf16_checkpoint") from error
    missing = [file for file in cast.files_of_task(index, num_tasks) if not cast.record(file)]
    # Asked again: whoever has published between these lines has taken the records away.
    return [] if is_published(cast) else missing


def _require_space(cast: Cast) -> None:
    left = sum(file.size_bytes for file in cast.files if not cast.record(file))
    require_space(cast.staging, left - bytes_of(cast.staging, ".*.tmp"), "the cast")


def _cast_file(cast: Cast, file: CastFile, advance: Advance) -> None:
    with closing(BandReader(cast.source)) as reader, writing_shard(cast.staged(file), file.layout) as writer:
        for entry in file.entries:
            for _, values in reader.bands(entry.name):
                writer.append(entry.name, values)
                advance(values.nbytes)
        reader.check_unchanged()
    publish_json(cast.part(file), {"size": writer.size_bytes, "tensors": writer.hashes})
