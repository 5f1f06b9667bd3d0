"""Writing at a place in a file."""

from __future__ import annotations

import os

WRITE_BYTES = 1 << 20
"""At most this at once. Linux backs a larger write with 2 MB pages, which are hard to come by in a full page cache."""


def write_at(descriptor: int, data: memoryview, position: int) -> None:
    """Write all of `data`, wherever the descriptor's own position is. Raises OSError when the file system refuses."""
    while data:
        written = os.pwrite(descriptor, data[:WRITE_BYTES], position)
        data, position = data[written:], position + written
