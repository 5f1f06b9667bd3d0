"""Reading records that may be missing, half there or of another version: status says what it can, and never fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_record(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def existing(*paths: Path) -> tuple[Path, ...]:
    """Those that are there."""
    return tuple(path for path in paths if path.exists())
