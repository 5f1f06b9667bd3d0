"""Small JSON records: what tasks leave for each other, and what they leave beside a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1hpc.errors import CheckpointError


def read_record(file: Path) -> Mapping[str, Any]:
    """What a task noted, {} where it has not yet. Raises CheckpointError when the file holds something else."""
    try:
        return read_object(file) or {}
    except CheckpointError as error:
        raise CheckpointError(f"{error}; remove it and run the task again") from error


def read_object(file: Path) -> Mapping[str, Any] | None:
    """The JSON object in `file`, null where there is no such file. Raises CheckpointError for anything else."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: holds a {type(value).__name__}, not a record")
    return value
