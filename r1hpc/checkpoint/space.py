"""Room on a file system, asked for before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from r1hpc.errors import CheckpointError
from r1hpc.plan.units import show_bytes


def require_space(directory: Path, needed_bytes: int, what: str, hint: str = "") -> None:
    """Raise CheckpointError when the file system of `directory` has less than `needed_bytes` free.

    hint: what could be removed.
    """
    free = shutil.disk_usage(directory).free
    if free < needed_bytes:
        raise CheckpointError(
            f"{directory}: {what} takes {show_bytes(needed_bytes)} more, {show_bytes(free)} are free; "
            f"make room or choose another directory{hint} (nothing was written)"
        )


def bytes_of(directory: Path, pattern: str) -> int:
    """Bytes of the files that match; one that goes away meanwhile counts nothing."""
    total = 0
    for file in directory.glob(pattern):
        try:
            total += file.stat().st_size
        except FileNotFoundError:
            continue
    return total


def has_size(file: Path, size_bytes: int) -> bool:
    """Whether the file is there with exactly so many bytes."""
    try:
        return file.stat().st_size == size_bytes
    except FileNotFoundError:
        return False
