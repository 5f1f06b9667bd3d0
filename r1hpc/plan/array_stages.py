"""Cast and convert: how long they take, and whether their workers fit in the memory of a task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Literal

from r1hpc.config import Config
from r1hpc.config.cluster import ConvertConfig
from r1hpc.plan.assumptions import (
    ARRAY_TASK_BYTES,
    ARRAY_WORKER_BYTES,
    GB,
    GIB,
    RECHECK_WORKER_BYTES_S,
    STREAM_WORKER_BYTES_S,
)
from r1hpc.plan.problems import Problem
from r1hpc.plan.storage import StoragePlan


@dataclass(frozen=True)
class StageTime:
    """How long the bytes of a stage take at best; the slower of file system and workers decides."""

    read_bytes: int
    written_bytes: int
    workers: int
    """Processes at a time, of all tasks together."""
    file_system_s: float
    """At run.file_system_gbps."""
    workers_s: float
    """At the speed of a worker whose files are in the page cache."""
    seconds: float
    bound: Literal["file system", "workers"]


@dataclass(frozen=True)
class ArrayStages:
    """The stages before the train job; null where the configuration has none of it."""

    cast: StageTime | None
    convert: StageTime | None
    recheck: StageTime | None
    """The reading of everything written, by the one task that publishes it."""


def make_array_stages(config: Config, storage: StoragePlan) -> ArrayStages:
    """The times of cast and convert."""
    cast, convert, written = config.cast, config.convert, storage.converted_bytes
    per_task = convert_workers(convert, convert.num_tasks)
    casting = _at_once(cast.num_tasks, cast.max_parallel) * cast.workers
    converting = _at_once(convert.num_tasks, convert.max_parallel) * per_task

    def stage(read: int, out: int, workers: int, speed: int = STREAM_WORKER_BYTES_S) -> StageTime:
        return _stage_time(read, out, workers, config.run.file_system_gbps * GB, speed)

    return ArrayStages(
        cast=stage(storage.source_bytes, storage.cast_bytes, casting) if storage.cast_bytes else None,
        convert=stage(storage.convert_read_bytes, written, converting) if written else None,
        recheck=stage(written, 0, per_task, RECHECK_WORKER_BYTES_S) if written and convert.recheck else None,
    )


def convert_workers(convert: ConvertConfig, num_tasks: int) -> int:
    """Worker processes of one of so many convert tasks: as configured, else one a slice, at most one a core."""
    slices = convert.pipeline_model_parallel_size * convert.expert_model_parallel_size
    return convert.workers or min(convert.cpus_per_task, ceil(slices / num_tasks))


def task_memory_problems(config: Config) -> Iterator[Problem]:
    """Tasks that have less memory than their workers take."""
    if config.ckpt.bf16_checkpoint:
        yield from _memory("cast", config.cast.workers, config.cast.memory_gib)
    if config.ckpt.ref_load:
        workers = convert_workers(config.convert, config.convert.num_tasks)
        yield from _memory("convert", workers, config.convert.memory_gib)


def _memory(stage: str, workers: int, memory_gib: float) -> Iterator[Problem]:
    needed, given = ARRAY_TASK_BYTES + workers * ARRAY_WORKER_BYTES, memory_gib * GIB
    if needed > given:
        yield Problem(
            f"{stage}.memory_gib",
            f"{stage}: {ARRAY_TASK_BYTES / GB:g} GB + {workers} workers * {ARRAY_WORKER_BYTES / GB:g} GB ="
            f" {needed / GB:.1f} GB a task, more than memory_gib {memory_gib:g} = {given / GB:.1f} GB;"
            f" raise it, or lower {stage}.workers",
        )


def _at_once(num_tasks: int, max_parallel: int | None) -> int:
    return min(num_tasks, max_parallel or num_tasks)


def _stage_time(read: int, written: int, workers: int, file_system: float, worker: int) -> StageTime:
    by_disk, by_workers = (read + written) / file_system, (read + written) / (workers * worker)
    return StageTime(
        read_bytes=read,
        written_bytes=written,
        workers=workers,
        file_system_s=by_disk,
        workers_s=by_workers,
        seconds=max(by_disk, by_workers),
        bound="file system" if by_disk >= by_workers else "workers",
    )
