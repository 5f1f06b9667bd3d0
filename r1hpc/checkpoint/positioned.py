"""Writing at places in a file, on its way to the disk from the first megabytes on."""

from __future__ import annotations

import ctypes
import os

WRITE_BYTES = 1 << 20
"""At most this at once: out of a core's cache, and no page of the page cache is larger."""
FLUSH_BYTES = 32 << 20
_SYNC_FILE_RANGE_WRITE = 2


class PositionedWriter:
    """Writes to one open file. Whoever publishes the file still has to fsync it.

    Left alone Linux keeps what is written for up to 30 s, and the fsync waits for a disk that was idle until then.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unflushed = 0

    def write_at(self, data: memoryview, position: int) -> None:
        """Write all of `data`. Raises OSError when the file system refuses."""
        while data:
            written = os.pwrite(self._descriptor, data[:WRITE_BYTES], position)
            data, position = data[written:], position + written
            self._unflushed += written
        if self._unflushed >= FLUSH_BYTES:
            self._unflushed = 0
            _begin_writeback(self._descriptor)


def _begin_writeback(descriptor: int) -> None:
    """Let the disk begin on the whole file. Where the file system cannot, nothing is lost: its answer is not needed."""
    whole_file = ctypes.c_int64(0)
    ctypes.CDLL(None).sync_file_range(descriptor, whole_file, whole_file, _SYNC_FILE_RANGE_WRITE)
