"""What one task of a cast or of a conversion came to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskOutcome:
    """Result of one array task."""

    published: bool
    """Whether the whole checkpoint is complete now."""
    written_bytes: int
    peak_bytes: int
    """Resident memory of the largest worker at its peak."""
