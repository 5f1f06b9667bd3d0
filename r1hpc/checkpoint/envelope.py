"""The bytes that torch.save puts around a tensor's own: what lets a payload be streamed into its archive.

Chunks of a torch_dist file are archives of torch.save (zip, stored). With the bytes before and after the payload known
for a (dtype, shape), the payload can go from one file to another without ever being a tensor.
"""

from __future__ import annotations

import io
import math
from functools import cache

import torch
from typing_extensions import Buffer


class _Recorder(io.BytesIO):
    """Takes what is written and notes where torch.save, told to skip data, leaves a hole."""

    def __init__(self) -> None:
        super().__init__()
        self.segments = [bytearray()]
        self.hole = 0

    def write(self, data: Buffer) -> int:
        raw = bytes(data)
        self.segments[-1] += raw
        return len(raw)

    def seek(self, offset: int, whence: int = 0) -> int:
        assert whence == io.SEEK_CUR, "torch.save skips data by seeking forward"
        self.hole += offset
        self.segments.append(bytearray())
        return 0


@cache
def envelope(dtype: torch.dtype, sizes: tuple[int, ...]) -> tuple[bytes, bytes]:
    """What comes before and after the payload of a contiguous tensor in the archive of torch.save.

    The archive has no checksums: nothing that reads it looks at them, and they would have to be known beforehand.
    """
    recorder = _Recorder()
    computed = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        with torch.serialization.skip_data():
            torch.save(torch.empty(sizes, dtype=dtype), recorder)  # empty: its pages are never touched
    finally:
        torch.serialization.set_crc32_options(computed)
    payload = math.prod(sizes) * dtype.itemsize
    assert len(recorder.segments) == 2 and recorder.hole == payload, (len(recorder.segments), recorder.hole, payload)
    return bytes(recorder.segments[0]), bytes(recorder.segments[1])
