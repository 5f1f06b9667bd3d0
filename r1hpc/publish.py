"""Publishing files: write beside, fsync, rename, fsync the directory. A reader sees the old file or the new one."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

_SILENT_S = 60
"""Where locks hold on one host only, another host's file counts as abandoned once it has not grown for so long."""
_LOCK_TRIES = 100


def publish_text(path: Path, text: str, beside: Path | None = None) -> None:
    """Write `text` to `path` so that a kill at any moment leaves the previous content or this one."""
    with publishing(path, beside) as stream:
        stream.write(text.encode())


def publish_json(path: Path, value: Any, beside: Path | None = None) -> None:
    """Publish `value` as indented JSON."""
    publish_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n", beside)


@contextmanager
def publishing(path: Path, beside: Path | None = None) -> Iterator[BinaryIO]:
    """A stream whose content becomes `path` when the block ends well; else nothing is left of it.

    beside: directory of the temporary file, on the same file system; null means that of `path`.
    """
    for _ in range(_LOCK_TRIES):
        temporary = _unused_name(path.name, path.parent if beside is None else beside)
        # The name is known before the file is there: a signal that raises right behind open() leaves none.
        try:
            with open(temporary, "xb") as stream:
                if not _is_kept(stream):
                    continue
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_directory(path.parent)
        return
    raise TimeoutError(f"{path}: its temporary file is taken as soon as it is made")


def remove_stale(path: Path, beside: Path | None = None) -> None:
    """Remove what killed writers of `path` left; one that is being written is locked, and stays."""
    directory = path.parent if beside is None else beside
    for temporary in directory.glob(f".{path.name}.*.tmp"):
        try:
            # For writing: NFS refuses an exclusive lock otherwise.
            with open(temporary, "r+b") as stream:
                if _is_abandoned(temporary, stream.fileno()):
                    temporary.unlink(missing_ok=True)
        except FileNotFoundError:
            pass  # published or removed meanwhile


def _is_abandoned(temporary: Path, descriptor: int) -> bool:
    """Whether nobody writes it; if so it is locked now, and whoever would begin to has to wait."""
    host = temporary.name.removesuffix(".tmp").rpartition(".")[0]
    here = host.endswith(f".{socket.gethostname()}")
    if not here and time.time() - os.fstat(descriptor).st_mtime <= _SILENT_S:
        return False
    return bool(_lock(descriptor))


def _unused_name(name: str, directory: Path) -> Path:
    """Hosts share the file system, and containers their pids: a word is drawn by lot.

    No name is used twice, for `remove_stale` removes by name the file that it has locked.
    """
    return directory / f".{name}.{socket.gethostname()}.{secrets.token_hex(6)}.tmp"


def _is_kept(stream: BinaryIO) -> bool:
    """Whether a new file is locked before `remove_stale` took it for abandoned; or nobody can lock it."""
    free = _lock(stream.fileno())
    return free is None or (free and os.fstat(stream.fileno()).st_nlink > 0)


def fsync_directory(path: Path) -> None:
    """Make the names in `path` outlive a power cut: without it a rename may be lost."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether the lock was free; None on a file system without locks: what is left there stays."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True
