"""The newest commit by its name, without reading what it holds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from r1hpc.status.files import read_record

_NAME = re.compile(r"iter_(\d{7,})")


@dataclass(frozen=True)
class CommitSeen:
    """A directory with COMMITTED.json. `python -m r1hpc.checkpoint commits verify` reads the rest of it."""

    iteration: int
    directory: Path
    committed_at: float | None
    """Unix time."""


def newest_seen(root: Path) -> CommitSeen | None:
    """The newest that claims to be complete; null where there is none."""
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    found = sorted((int(match[1]), match[0]) for name in names if (match := _NAME.fullmatch(name)))
    for iteration, name in reversed(found):
        commit = read_record(root / name / "COMMITTED.json").get("commit")
        if isinstance(commit, dict):
            return CommitSeen(iteration, root / name, commit.get("committed_at"))
    return None
