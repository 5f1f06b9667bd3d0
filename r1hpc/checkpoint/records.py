"""Small JSON records that tasks leave for each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from r1hpc.errors import CheckpointError


def read_record(file: Path) -> Mapping[str, Any]:
    """A JSON object, {} where there is none. Raises CheckpointError when the file holds something else."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{file}: is not JSON ({error}); remove it and run the task again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: holds a {type(value).__name__}, not a record; remove it and run the task again")
    return value
