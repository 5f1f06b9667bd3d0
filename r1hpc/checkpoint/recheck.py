"""Reading stored chunks again and comparing their hashes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import xxhash

from r1hpc.checkpoint.distcp import StoredChunk

_BAND_BYTES = 4 << 20


def recheck_file(file: Path, stored: Sequence[StoredChunk], advance: Callable[[int], None]) -> list[str]:
    """What is wrong with the chunks of one file, each problem naming file, key and place; [] when nothing is."""
    problems = []
    buffer = bytearray(_BAND_BYTES)
    try:
        with open(file, "rb", buffering=0) as stream:
            for chunk in stored:
                found = _hash(stream.fileno(), chunk.offset, chunk.length, buffer, advance)
                if found != chunk.xxh3:
                    problems.append(
                        f"{file}: {chunk.key} at {list(chunk.chunk.offsets)} has xxh3 {found} in bytes {chunk.offset} "
                        f"to {chunk.offset + chunk.length - 1}; {chunk.xxh3} was written there"
                    )
    except OSError as error:
        problems.append(f"{file}: cannot be read ({error.strerror})")
    return problems


def _hash(descriptor: int, begin: int, length: int, buffer: bytearray, advance: Callable[[int], None]) -> str:
    digest = xxhash.xxh3_64()
    view = memoryview(buffer)
    while length > 0:
        got = os.preadv(descriptor, [view[: min(length, len(view))]], begin)
        if got == 0:
            break  # cut short: the hash will differ
        digest.update(view[:got])
        advance(got)
        begin, length = begin + got, length - got
    return digest.hexdigest()
