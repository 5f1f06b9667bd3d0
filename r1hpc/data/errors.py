"""What is raised for prompt data that cannot be used."""

from __future__ import annotations

from r1hpc.errors import R1hpcError


class DataError(R1hpcError):
    """Prompt data that cannot be read, or is not what the run was started with; names file and line."""
