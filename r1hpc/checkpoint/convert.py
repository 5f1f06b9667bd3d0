"""Hugging Face to torch_dist by independent tasks: no process group, no model, no order among them.

Megatron stores gate and up, and every expert, as chunks of their own, so conversion is renaming and placing: bands of
the source go straight into the archives of the target, and memory does not depend on the size of a tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing

from r1hpc.checkpoint.bands import BandReader
from r1hpc.checkpoint.conversion import RELEASE, TRACKER, Conversion, ConvertFile
from r1hpc.checkpoint.distcp import DistcpWriter, as_json
from r1hpc.checkpoint.names import TensorName
from r1hpc.checkpoint.recorded_hashes import recorded_hashes, require_recorded
from r1hpc.checkpoint.release import complete_release, recheck_files
from r1hpc.checkpoint.staged_work import Records, Steps, run_task
from r1hpc.checkpoint.task_outcome import TaskOutcome
from r1hpc.checkpoint.workers import Advance
from r1hpc.errors import CheckpointError
from r1hpc.publish import publish_json, publish_text, publishing, remove_stale


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
    _refuse_commits(conversion)
    recorded = recorded_hashes(conversion.source)

    def complete(records: Records) -> None:
        if recheck:
            recheck_files(conversion, records, num_workers, say, every_s)
        complete_release(conversion, records)

    steps = Steps[ConvertFile](
        write=lambda file, advance: _write_file(conversion, file, recorded, advance),
        complete=complete,
        announce=lambda: _track(conversion),
    )
    title = f"task {index + 1} of {num_tasks}"
    return run_task(conversion, steps, conversion.files_of_task(index, num_tasks), num_workers, title, say, every_s)


def convert_all(conversion: Conversion, num_workers: int, say: Callable[[str], None]) -> TaskOutcome:
    """Every slice in one task."""
    return run_convert_task(conversion, 0, 1, num_workers, say)


def _refuse_commits(conversion: Conversion) -> None:
    """A release beside the commits of a training run would hide them from the next start."""
    tracker = conversion.root / TRACKER
    if tracker.exists() and tracker.read_bytes().strip() != RELEASE.encode():
        raise CheckpointError(
            f"{conversion.root}: holds the commits of a training run ({TRACKER} does not say {RELEASE}); "
            "set ckpt.ref_load to another directory"
        )


def _track(conversion: Conversion) -> None:
    """The tracker, last of all: what --ref-load looks for."""
    tracker = conversion.root / TRACKER
    if not tracker.exists():
        publish_text(tracker, RELEASE + "\n")
    remove_stale(tracker)


def _write_file(conversion: Conversion, file: ConvertFile, recorded: Mapping[str, str], advance: Advance) -> None:
    path = conversion.staged / file.name
    try:
        with closing(BandReader(conversion.source)) as reader, publishing(path, conversion.temporary) as stream:
            writer = DistcpWriter(stream, conversion.pieces)
            for name in file.names:
                _write_tensor(writer, reader, name, advance)
            reader.check_unchanged()
            require_recorded(reader, recorded)
        chunks = [as_json(chunk) for chunk in writer.stored]
        publish_json(conversion.part(file), {"size": writer.size_bytes, "chunks": chunks, "sources": reader.hashes})
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written ({error}); run the task again") from error


def _write_tensor(writer: DistcpWriter, reader: BandReader, name: TensorName, advance: Advance) -> None:
    """A copy is only read: its hash must be that of the tensor it repeats, which whoever publishes compares."""
    bands = reader.bands(name.hf)
    if name.copy_of:
        for _ in bands:
            pass
        return
    for size_bytes in writer.write(name, bands):
        advance(size_bytes)
