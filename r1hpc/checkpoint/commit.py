"""Commits of a run: the trainers' checkpoint and all that goes with it, there as a whole or not at all.

The trainers save into a hidden directory, the rest is written into it, COMMITTED.json last, and one rename publishes
it. Which commit is the newest is never stored: it is found by looking, and what is not whole is passed over.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from r1hpc.checkpoint.commits.names import committed_path, is_leftover, is_replaced, replaced_path, uncommitted_path
from r1hpc.checkpoint.commits.owner import Owner
from r1hpc.checkpoint.commits.record import Commit, InvalidCommit, judge, seal
from r1hpc.checkpoint.commits.retention import directories, judge_all, remove_commit, remove_tree, surplus
from r1hpc.checkpoint.hf_checkpoint import MANIFEST
from r1hpc.errors import CheckpointError
from r1hpc.plan.units import show_bytes
from r1hpc.publish import fsync_directory

__all__ = ["Commit", "Commits", "Saved", "newest_commit"]
logger = logging.getLogger(__name__)

VISIBLE_S = 90.0
"""NFS clients believe for 60 s what they last heard of a directory."""
_POLL_S = 0.5


class Saved(Protocol):
    """What the trainers say of a checkpoint that they have completed."""

    @property
    def directory(self) -> Path: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def manifest_xxh3(self) -> str: ...
    @property
    def seconds(self) -> float: ...


def newest_commit(root: Path) -> Commit | None:
    """The newest valid commit; the log says which ones were passed over, and why.

    Stats every file and reads the small ones: no weights. Raises CheckpointError where nobody can say whether a newer
    one is valid: to go on from an older one then would lose work without need.
    """
    for directory in directories(root):
        try:
            return judge(directory)
        except InvalidCommit as error:
            logger.warning("passed over: %s", error)
    return None


class Commits:
    """The commits in one directory, and the one that is being made. Blocking: call it in a thread."""

    def __init__(self, root: Path, keep: int, visible_s: float = VISIBLE_S) -> None:
        """keep: valid commits that `sweep` leaves, at least 1. visible_s: until what another host published is seen."""
        self.root = root
        self._keep = keep
        self._visible_s = visible_s
        self._owner = Owner(root)
        self._begun: dict[int, Path] = {}
        self._reported: set[str] = set()
        self._lock = threading.RLock()

    def newest(self) -> Commit | None:
        """As `newest_commit`."""
        return newest_commit(self.root)

    def begin(self, iteration: int) -> Path:
        """The directory that the trainers are to save into; it is not made. Sweeps first, to make room.

        Raises CheckpointError where there is a valid commit of this iteration already.
        """
        self.discard(iteration)
        self.sweep()
        target = committed_path(self.root, iteration)
        if (problem := _in_the_way(target)) is not None:
            logger.warning("%s; it is renamed when iteration %d is committed", problem, iteration)
        with self._lock:
            self._begun[iteration] = uncommitted_path(self.root, iteration)
            return self._begun[iteration]

    def finish(
        self,
        iteration: int,
        saved: Saved,
        write_rest: Callable[[Path], None],
        record: Mapping[str, Any],
    ) -> Commit:
        """Publish what the trainers saved into the directory of `begin`, with what `write_rest` writes beside it.

        record: goes into COMMITTED.json; JSON. Raises CheckpointError, and then nothing is left of the commit.
        """
        assert iteration in self._begun, f"the commit of iteration {iteration} was not begun, or was discarded"
        directory = self._begun[iteration]
        assert saved.directory == directory, f"saved to {saved.directory}, begun as {directory}"
        try:
            self._owner.require()  # whoever took over has swept this save away: no use to wait for it
            _wait_for(directory / MANIFEST, self._visible_s)
            write_rest(directory)
            seal(directory, iteration, saved.manifest_xxh3, record)
            self._owner.require()
            self._publish(directory, committed_path(self.root, iteration))
        except OSError as error:
            self.discard(iteration)
            raise self._explained(error, iteration, saved.size_bytes) from error
        except BaseException:
            self.discard(iteration)
            raise
        with self._lock:
            del self._begun[iteration]
        # With the eyes that will look at it after a restart.
        commit = judge(committed_path(self.root, iteration))
        logger.info("committed iteration %d: %s, %s", iteration, commit.directory, show_bytes(commit.size_bytes))
        return commit

    def discard(self, iteration: int) -> None:
        """Remove what there is of a commit that was begun; one that was not is none."""
        with self._lock:
            directory = self._begun.pop(iteration, None)
        if directory is None or not self.root.is_dir():
            return
        for name in os.listdir(self.root):
            if name == directory.name or name.startswith(f".{directory.name}."):
                remove_tree(self.root / name)

    def sweep(self) -> None:
        """Remove what killed saves and removals left, and the commits that are too many. Call it after `finish` too.

        Raises CheckpointError when another attempt has taken the directory over.
        """
        with self._lock:
            self._owner.require()
            for name in os.listdir(self.root):
                if is_leftover(name) and not self._is_begun(name):
                    remove_tree(self.root / name)
            self._retain()

    def _retain(self) -> None:
        judged = judge_all(self.root)
        for one in judged:
            if one.problem and one.problem not in self._reported:
                self._reported.add(one.problem)
                logger.warning("no commit to go on from: %s", one.problem)
        for one in surplus(judged, self._keep):
            try:
                gone = remove_commit(one.directory)
            except OSError as error:
                logger.warning("%s: cannot be removed (%s)", one.directory, error)
                continue
            logger.info("%s", f"removed {one.directory}" if gone else f"{one.directory} is being read: it stays")

    def _is_begun(self, name: str) -> bool:
        return any(
            name in (begun.name, f".{begun.name}") or name.startswith(f".{begun.name}.")
            for begun in self._begun.values()
        )

    def _publish(self, directory: Path, target: Path) -> None:
        if _in_the_way(target) is not None:
            aside = replaced_path(target)
            os.rename(target, aside)
            logger.warning("%s was in the way of a commit: it is %s now", target, aside.name)
        os.rename(directory, target)
        fsync_directory(self.root)

    def _explained(self, error: OSError, iteration: int, size_bytes: int) -> CheckpointError:
        what = f"{self.root}: iteration {iteration} cannot be committed"
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return CheckpointError(f"{what} ({error.strerror}: {error.filename})")
        others = [name for name in sorted(os.listdir(self.root)) if is_replaced(name)]
        hint = f", {', '.join(others)} for instance" if others else ""
        free = show_bytes(shutil.disk_usage(self.root).free)
        return CheckpointError(
            f"{what}: no room is left for its last files ({error.strerror}); it takes {show_bytes(size_bytes)} and a"
            f" few MB more, and now that it is given up {free} are free (a quota may allow less); remove something"
            f"{hint}, or lower ckpt.keep ({self._keep})"
        )


def _in_the_way(target: Path) -> str | None:
    """What is wrong with a directory where a commit is to be; null where there is none."""
    if not os.path.lexists(target):
        return None
    try:
        judge(target)
    except InvalidCommit as error:
        return str(error)
    raise CheckpointError(
        f"{target}: is a valid commit already, and commits are never written over: start again to go on from it, or"
        " rename it"
    )


def _wait_for(file: Path, deadline_s: float) -> None:
    """Wait until what another host has renamed can be seen here."""
    end = time.monotonic() + deadline_s
    while True:
        # A listing asks the server; a look-up may be answered from what was not there before.
        if file.parent.name in os.listdir(file.parent.parent) and file.is_file():
            return
        if time.monotonic() > end:
            raise CheckpointError(
                f"{file}: cannot be seen here {deadline_s:.0f} s after the trainers published it; ckpt.save must be on"
                " a file system that all hosts share"
            )
        time.sleep(_POLL_S)
