"""A trainer checkpoint that was written, as the driver is told of it. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from r1hpc.train.checkpoint.trainer_state import TrainerState


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that is complete and on the disk."""

    directory: Path
    state: TrainerState
    size_bytes: int
    """Of all its files."""
    manifest_xxh3: str
    """Of its manifest.json, which has the size and the hash of every other file: what a commit has to name."""
    seconds: float
    """That it took: writing on the slowest rank, and publishing; not the wait until somebody asked for it."""
