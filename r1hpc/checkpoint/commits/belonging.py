"""Whose commits lie in a directory. Reads the small records alone and loads no torch: a login node asks too."""

from __future__ import annotations

import json
import os
from pathlib import Path

from r1hpc.checkpoint.commits.names import COMMITTED, iteration_of
from r1hpc.errors import ConfigError


def refuse_other_runs(root: Path, run_id: str | None) -> None:
    """Raise ConfigError where another run has committed to `root`.

    Two runs in one directory would go on from, take over and remove each other's commits. Call it before anything is
    swept there. run_id: this run's; null for one that has none yet, so that every commit is another run's.
    """
    for name in _newest_first(root):
        other = _run_of(root / name)
        if other is not None and other != run_id:
            raise ConfigError([_refusal(root, name, other, run_id)])


def _newest_first(root: Path) -> list[str]:
    try:
        names = os.listdir(root)
    except OSError:
        return []  # nothing is there; or whoever loads from it says what is wrong
    found = [(iteration, name) for name in names if (iteration := iteration_of(name)) is not None]
    return [name for _, name in sorted(found, reverse=True)]


def _run_of(directory: Path) -> str | None:
    """The run that made this commit; null where that cannot be read: such a commit is no one's to go on from."""
    try:
        run_id = json.loads((directory / COMMITTED).read_bytes())["commit"]["record"]["run_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(run_id)


def _refusal(root: Path, name: str, other: str, run_id: str | None) -> str:
    this = f"this run is {run_id}" if run_id is not None else "this run has not begun yet"
    return (
        f"ckpt.save = {root}: {name} was committed by run {other}, and {this}; in one directory each would take over"
        " and remove the other's commits. For a new experiment set ckpt.save=null, which commits to the run directory,"
        f" under a run.name of its own, and ckpt.load=null to begin at the reference or ckpt.load={root} to go on from"
        f" the commits of {other}"
    )
