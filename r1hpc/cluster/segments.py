"""Named shared memory of processes that are killed: their libraries would have removed it, nobody else does."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from r1hpc.cluster.processes import all_processes

SHARED_MEMORY = Path("/dev/shm")


class SharedSegments:
    """What processes were seen to have mapped from /dev/shm."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def note(self, pids: Iterable[int]) -> None:
        """Remember what these have mapped now."""
        for pid in pids:
            self._seen |= _mapped_inodes(pid)

    def remove(self) -> None:
        """Remove what was noted, is ours, and is mapped by no process any more; another's is left alone."""
        left = {inode: path for path, inode in _our_files() if inode in self._seen}
        if left:
            mapped = set[int]().union(*map(_mapped_inodes, all_processes()))
            for inode in left.keys() - mapped:
                with contextlib.suppress(OSError):
                    left[inode].unlink()
        self._seen.clear()


def _mapped_inodes(pid: int) -> set[int]:
    """Of the files of /dev/shm that a process has mapped. Not their names: sem_open maps a file before it names it."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return set()
    return {int(line.split(maxsplit=5)[4]) for line in lines if f" {SHARED_MEMORY}/" in line}


def _our_files() -> Iterable[tuple[Path, int]]:
    for path in SHARED_MEMORY.iterdir():
        with contextlib.suppress(OSError):
            found = path.stat()
            if found.st_uid == os.getuid():
                yield path, found.st_ino
