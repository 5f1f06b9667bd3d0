"""Publishing files: write beside, fsync, rename, fsync the directory. A reader sees the old file or the new one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def publish_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a kill at any moment leaves the previous content or this one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _fsync_directory(path.parent)


def publish_json(path: Path, value: Any) -> None:
    """Publish `value` as indented JSON."""
    publish_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def _fsync_directory(path: Path) -> None:
    # Without it the rename itself may be lost when the node loses power.
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
