"""Nobody wakes before the other side's memory is free: a release that has returned may still be going on."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from r1hpc.actors.memory import MemoryReading
from r1hpc.errors import R1hpcError

_POLL_S = 0.2
_SHOWN = 4


class MemoryNotFree(R1hpcError):
    """Memory that one side should have given back; names each memory and who holds it."""


class Readers(Protocol):
    """The trainers, whose processes are where the memory is."""

    async def memory(self) -> list[MemoryReading]:
        """By rank."""

    async def holders(self) -> list[list[str]]:
        """By rank, who holds its memory."""


async def wait_until_free(readers: Readers, needs: Sequence[int], side: str, deadline_s: float) -> None:
    """Return when every memory has room for what its ranks need. Raises MemoryNotFree past the deadline.

    needs: bytes by rank. side: who is to wake. On a CPU all ranks of a host have its memory in common; nothing else is
    different there.
    """
    began = time.monotonic()
    while True:
        readings = await readers.memory()
        short = shortages(readings, needs)
        if not short:
            return
        waited = time.monotonic() - began
        if waited > deadline_s:
            raise MemoryNotFree(await _told(readers, readings, short, side, waited))
        await asyncio.sleep(_POLL_S)


def shortages(readings: Sequence[MemoryReading], needs: Sequence[int]) -> Mapping[str, str]:
    """For each memory that has no room, the arithmetic."""
    needed: Counter[str] = Counter()
    free: dict[str, int] = {}
    for reading in readings:
        needed[reading.memory] += needs[reading.rank]
        free[reading.memory] = min(reading.free_bytes, free.get(reading.memory, reading.free_bytes))
    return {
        memory: f"{memory}: {_gib(free[memory])} are free, {_gib(bytes_)} are needed"
        for memory, bytes_ in needed.items()
        if free[memory] < bytes_
    }


async def _told(
    readers: Readers, readings: Sequence[MemoryReading], short: Mapping[str, str], side: str, waited: float
) -> str:
    holders = await readers.holders()
    rank_of = {reading.memory: reading.rank for reading in readings}
    lines = []
    for memory, text in list(short.items())[:_SHOWN]:
        lines.append(f"  {text}; {'; '.join(holders[rank_of[memory]]) or 'who holds the rest cannot be told'}")
    more = f"\n  and {len(short) - _SHOWN} more" if len(short) > _SHOWN else ""
    return (
        f"the {side} cannot wake: {len(short)} memories are not free after {waited:.0f} s; a process that the run does"
        " not know must be ended, else give the engines less (sglang.mem_fraction_static)\n" + "\n".join(lines) + more
    )


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
