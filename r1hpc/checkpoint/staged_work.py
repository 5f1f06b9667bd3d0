"""Work that many tasks share through the file system alone, published whole by the rename of one directory.

A task writes its files, each appearing by rename with a part, its record, after it. Tasks share nothing else, so any of
them may be killed and started again, run twice, or hours apart; whoever finds all parts publishes. It may be two at
once, or one that is killed on any line: all write the same bytes. Another source, or another plan, works elsewhere and
has another identity, so nothing of two can ever meet in one checkpoint.
"""

from __future__ import annotations

import errno
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from r1hpc.checkpoint.hf_checkpoint import MANIFEST, HfCheckpoint, open_checkpoint
from r1hpc.checkpoint.progress import Progress
from r1hpc.checkpoint.records import read_record
from r1hpc.checkpoint.space import bytes_of, has_size, require_space
from r1hpc.checkpoint.task_outcome import TaskOutcome
from r1hpc.checkpoint.workers import Advance, run_units
from r1hpc.errors import CheckpointError, R1hpcError
from r1hpc.plan.units import show_bytes
from r1hpc.publish import fsync_directory, remove_stale

Records = Mapping[str, Mapping[str, Any]]
"""The record of each file, by its name; `size` is its size in bytes."""


class WorkFile(Protocol):
    """One file to be written."""

    @property
    def name(self) -> str:
        """Its name in the checkpoint."""

    @property
    def size_bytes(self) -> int:
        """Its payload."""


F = TypeVar("F", bound=WorkFile)


class StagedWork(ABC, Generic[F]):
    """A cast or a conversion: of what, into what, and where it lies until it is complete."""

    source: HfCheckpoint
    files: tuple[F, ...]
    what: str
    """cast, convert"""
    setting: str
    """The configuration's key of the directory."""

    @property
    @abstractmethod
    def final(self) -> Path:
        """The directory that appears, whole."""

    @property
    @abstractmethod
    def stagings(self) -> Path:
        """Directory of all work in progress for it, on the same file system."""

    @property
    @abstractmethod
    def identity(self) -> str:
        """Digest of the source and of everything else that the bytes depend on."""

    @abstractmethod
    def identity_found(self) -> object:
        """The identity of the work that `final` came from; anything else for what somebody else put there."""

    def why_another(self) -> str:
        """What is wrong with a `final` that is not this work's."""
        return (
            f"already holds something that was not made from {self.source.directory} as it is now; set "
            f"{self.setting} to another directory, or remove it"
        )

    @property
    def staging(self) -> Path:
        """Everything of this work before it is published."""
        return self.stagings / self.identity

    @property
    def staged(self) -> Path:
        """What becomes `final` by one rename: complete files only."""
        return self.staging / "complete"

    @property
    def temporary(self) -> Path:
        """Files being written: outside `staged`, so that a late writer leaves nothing in the checkpoint."""
        return self.staging / "temporary"

    @property
    def parts(self) -> Path:
        """Directory of the records."""
        return self.staging / "parts"

    def part(self, file: F) -> Path:
        """The record of one file that is done."""
        return self.parts / f"{file.name}.json"

    def record(self, file: F) -> Mapping[str, Any]:
        """What the record says; {} for a file that is not done."""
        record = read_record(self.part(file))
        return record if record and has_size(self.staged / file.name, record["size"]) else {}


@dataclass(frozen=True)
class Steps(Generic[F]):
    """What a task does of the work."""

    write: Callable[[F, Advance], None]
    """Write one file and, after it, its part. Runs in a worker."""
    complete: Callable[[Records], None]
    """Check the staged files and write what makes them a checkpoint."""
    announce: Callable[[], None] = lambda: None
    """What comes after the rename; done again by whoever finds the checkpoint complete."""


def run_task(
    work: StagedWork[F],
    steps: Steps[F],
    mine: Sequence[F],
    num_workers: int,
    title: str,
    say: Callable[[str], None],
    every_s: float,
) -> TaskOutcome:
    """Write those of `mine` that are not done, and publish when everything is.

    Raises CheckpointError when the directory holds something else, room is short, or a file cannot be written.
    """
    _refuse_another(work)
    written = peak = 0
    if missing := _missing(work, mine):
        written = sum(file.size_bytes for file in missing)
        try:
            for file in missing:
                remove_stale(work.staged / file.name, work.temporary)
            _require_space(work)
            progress = Progress(f"{work.what}, {title}", written, say, every_s)
            peak = run_units(missing, steps.write, num_workers, progress).peak_bytes
        except (OSError, R1hpcError) as error:
            # Another run of this very task may have finished first, and published: then its directory is gone.
            if not is_published(work):
                raise _for_people(work, error) from error
    published = publish_if_complete(work, steps)
    say(f"{work.final} is complete" if published else _what_is_missing(work))
    return TaskOutcome(published, written, peak)


def is_published(work: StagedWork[F]) -> bool:
    """Whether `final` is this very work, whole. Raises CheckpointError when it is, but a file of it was lost since."""
    if not work.final.exists() or work.identity_found() != work.identity:
        return False
    files: Mapping[str, Any] = read_record(work.final / MANIFEST).get("files", {})
    for name, record in files.items():
        if not has_size(work.final / name, record["size"]):
            raise CheckpointError(
                f"{work.final / name}: is missing, or has not the {record['size']} bytes that were published; remove "
                f"{work.final} and run the stage again"
            )
    return bool(files)


def publish_if_complete(work: StagedWork[F], steps: Steps[F]) -> bool:
    """Publish when every file is there and right; returns whether the checkpoint is complete now.

    Raises CheckpointProblems naming every file that is not what its record says, CheckpointError when the source is not
    what it was when this task began.
    """
    if not is_published(work):
        try:
            records = {file.name: work.record(file) for file in work.files}
            if not all(records.values()):
                # Another task may have published, and removed the records, since we looked.
                if not is_published(work):
                    return False
            else:
                _publish(work, steps, records)
        except (OSError, R1hpcError) as error:
            if not is_published(work):
                raise _for_people(work, error) from error
    steps.announce()
    # Of other sources and plans too: their place is taken.
    shutil.rmtree(work.stagings, ignore_errors=True)
    return True


def _publish(work: StagedWork[F], steps: Steps[F], records: Records) -> None:
    steps.complete(records)
    # Files read at different times may be of different revisions, though each was of one.
    if open_checkpoint(work.source.directory).identity != work.source.identity:
        raise CheckpointError(
            f"{work.source.directory}: has changed since this task began; once it is complete, run all tasks again "
            f"({work.staging} can be removed)"
        )
    fsync_directory(work.staged)
    os.rename(work.staged, work.final)
    fsync_directory(work.final.parent)


def _refuse_another(work: StagedWork[F]) -> None:
    """An empty directory is nobody's: a rename takes its place."""
    if not work.final.exists():
        return
    free = work.final.is_dir() and not any(work.final.iterdir())
    # The last of these for another task that has published between the lines.
    if not free and work.identity_found() != work.identity and not is_published(work):
        raise CheckpointError(f"{work.final}: {work.why_another()}")
    if work.final.is_mount():
        raise CheckpointError(f"{work.final}: is a mount point, and no rename takes its place; name a directory in it")


def _missing(work: StagedWork[F], mine: Sequence[F]) -> list[F]:
    """Those of this task's files that are not done."""
    if is_published(work):
        return []
    try:
        for folder in (work.staged, work.temporary, work.parts):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename}: cannot be made ({error.strerror}); set {work.setting}, {work.final} now, elsewhere"
        ) from error
    missing = [file for file in mine if not work.record(file)]
    # Asked again: whoever has published between these lines has taken the records away.
    return [] if is_published(work) else missing


def _require_space(work: StagedWork[F]) -> None:
    left = sum(file.size_bytes for file in work.files if not work.record(file))
    others = [folder for folder in work.stagings.iterdir() if folder != work.staging]
    taken = sum(bytes_of(folder, "**/*") for folder in others)
    hint = f"; {', '.join(map(str, others))} of earlier sources or plans hold {show_bytes(taken)}" if others else ""
    require_space(work.staging, left - bytes_of(work.temporary, ".*.tmp"), f"the {work.what}", hint)


def _what_is_missing(work: StagedWork[F]) -> str:
    names = [file.name for file in work.files if not work.record(file)]
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} of {len(work.files)} files are not done yet ({shown}); the last task to finish publishes"


def _for_people(work: StagedWork[F], error: Exception) -> Exception:
    """A full disk, or a name that somebody else took, in words."""
    if not isinstance(error, OSError):
        return error
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
        return CheckpointError(f"{work.final}: something else has been put there meanwhile; remove it and run again")
    return CheckpointError(f"{work.final}: cannot be published ({error}); run the task again")
