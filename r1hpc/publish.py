"""Publishing files: write beside, fsync, rename, fsync the directory. A reader sees the old file or the new one."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_SETTLED_S = 5
"""A temporary file younger than this may belong to someone who has not locked it yet."""


def publish_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a kill at any moment leaves the previous content or this one."""
    with publishing(path) as stream:
        stream.write(text.encode())


def publish_json(path: Path, value: Any) -> None:
    """Publish `value` as indented JSON."""
    publish_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


@contextmanager
def publishing(path: Path, beside: Path | None = None) -> Iterator[BinaryIO]:
    """A stream whose content becomes `path` when the block ends well; else nothing is left of it.

    beside: directory of the temporary file, on the same file system; null means that of `path`.
    """
    directory = path.parent if beside is None else beside
    # Hosts share the file system, so the pid alone would not be unique.
    temporary = directory / f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as stream:
            _lock(stream.fileno())
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_directory(path.parent)


def remove_stale(path: Path, beside: Path | None = None) -> None:
    """Remove what killed writers of `path` left; one that is being written is locked, and stays."""
    directory = path.parent if beside is None else beside
    for temporary in directory.glob(f".{path.name}.*.tmp"):
        try:
            with open(temporary, "rb") as stream:
                if time.time() - os.fstat(stream.fileno()).st_mtime > _SETTLED_S and _lock(stream.fileno()):
                    temporary.unlink(missing_ok=True)
        except FileNotFoundError:
            pass  # published or removed meanwhile


def fsync_directory(path: Path) -> None:
    """Make the names in `path` outlive a power cut: without it a rename may be lost."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Whether the lock was free. False too on a file system without locks: what is left there stays."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
