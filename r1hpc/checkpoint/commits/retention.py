"""Which commits stay, and how the others go."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from r1hpc.checkpoint.commits.names import COMMITTED, iteration_of, removing_path
from r1hpc.checkpoint.commits.record import Commit, InvalidCommit, judge
from r1hpc.errors import CheckpointError
from r1hpc.publish import fsync_directory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judged:
    """A directory with the name of a commit."""

    directory: Path
    commit: Commit | None
    """Null where it is none, or where that cannot be known."""
    problem: str = ""
    """Why it is none."""
    is_ours: bool = True
    """Whether it was a commit once; what somebody else put there is not ours to remove."""


def directories(root: Path) -> list[Path]:
    """Whatever has the name of a commit, the newest first. Raises CheckpointError where `root` cannot be read."""
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"{root}: cannot be looked into ({error.strerror}); commits lie in a directory"
        ) from error
    found = {root / name: number for name in names if (number := iteration_of(name)) is not None}
    return sorted(found, key=found.__getitem__, reverse=True)


def judge_all(root: Path) -> list[Judged]:
    """All of them, the newest first."""
    return [_judged(directory) for directory in directories(root)]


def _judged(directory: Path) -> Judged:
    try:
        return Judged(directory, judge(directory))
    except InvalidCommit as error:
        return Judged(directory, None, str(error), os.path.lexists(directory / COMMITTED))
    except CheckpointError as error:
        return Judged(directory, None, str(error), is_ours=False)


def surplus(judged: list[Judged], keep: int) -> list[Judged]:
    """What may go: all that is ours and older than the `keep` newest valid commits.

    judged: the newest first. Nothing goes while there are fewer valid ones than that, and never a valid one without
    `keep` newer ones, whatever damaged ones lie between.
    """
    assert keep >= 1, f"keep is {keep}: the newest valid commit always stays"
    valid = 0
    for place, one in enumerate(judged):
        valid += one.commit is not None
        if valid == keep:
            return [older for older in judged[place + 1 :] if older.is_ours]
    return []


def remove_commit(directory: Path) -> bool:
    """Remove a commit unless somebody reads it; whether it is gone. Killed on its way it leaves no half of a commit."""
    with _unread(directory) as unread:
        if not unread:
            return False
        aside = removing_path(directory)
        os.rename(directory, aside)
    fsync_directory(aside.parent)
    remove_tree(aside)
    return True


def remove_tree(path: Path) -> None:
    """Remove a directory as far as that goes: what another host keeps open or removes too is no reason to fail."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)  # what a link names is somebody else's
        return
    failures: list[OSError] = []

    def note(_function: object, _path: str, info: tuple[object, BaseException, object]) -> None:
        if isinstance(info[1], OSError) and not isinstance(info[1], FileNotFoundError):
            failures.append(info[1])

    shutil.rmtree(path, onerror=note)
    if failures:
        logger.warning("%s: %d files of it cannot be removed now (%s)", path, len(failures), failures[0])


@contextmanager
def reading(commit: Path) -> Iterator[None]:
    """Keep a commit from being removed while the block reads it, where the file system has locks."""
    with open(commit / COMMITTED, "rb") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            logger.info("%s: cannot be locked (%s): retention may remove it while it is read", commit, error.strerror)
        yield


@contextmanager
def _unread(commit: Path) -> Iterator[bool]:
    try:
        # For writing: NFS refuses an exclusive lock otherwise.
        stream = open(commit / COMMITTED, "r+b")  # noqa: SIM115 (closed below)
    except OSError:
        yield True  # never committed, or read-only: nobody can have locked it in earnest
        return
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass  # a file system without locks
        yield True
