"""Removing by hand what a run leaves to people: commits too many, what was in their way, what killed saves left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from r1hpc.checkpoint.commits.names import is_leftover, is_replaced
from r1hpc.checkpoint.commits.retention import Judged, judge_all, surplus

QUIET_S = 3600.0
"""What has not been written to for so long belongs to no save that goes on. A run sweeps its own at once."""


def prunable(root: Path, keep: int) -> Iterator[tuple[Path, str]]:
    """What may go, each with why: commits older than the `keep` newest valid ones, and leftovers.

    Nothing is named that is the newest valid commit, or newer, and nothing that is being written.
    """
    judged = judge_all(root)
    for one in surplus(judged, keep):
        yield one.directory, _why(one)
    # Nothing valid: whoever is to find out what happened needs all of it.
    has_commit = any(one.commit for one in judged)
    for name in sorted(os.listdir(root)):
        path = root / name
        if is_replaced(name) and has_commit:
            yield path, "was in the way of a commit"
        elif is_leftover(name) and _is_quiet(path):
            yield path, "left by a save or a removal that was killed"


def _why(one: Judged) -> str:
    return "valid, but older than those that are kept" if one.commit else one.problem


def _is_quiet(path: Path) -> bool:
    """Whether nothing in it was written lately; what goes away meanwhile is being removed."""
    try:
        newest = max((entry.stat().st_mtime for entry in os.scandir(path)), default=path.stat().st_mtime)
    except OSError:
        return False
    return time.time() - max(newest, path.stat().st_mtime) > QUIET_S
