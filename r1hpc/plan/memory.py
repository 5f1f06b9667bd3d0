"""What fills a memory: named parts against a limit."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryPart:
    """One thing that lies in a memory."""

    name: str
    bytes: int
    note: str = ""
    """Its arithmetic, or where its number comes from."""


@dataclass(frozen=True)
class MemoryUse:
    """The parts that lie in one memory at the same time."""

    parts: tuple[MemoryPart, ...]
    limit_bytes: int

    @property
    def total_bytes(self) -> int:
        """All parts together."""
        return sum(part.bytes for part in self.parts)

    @property
    def fits(self) -> bool:
        """Whether the parts stay within the limit."""
        return self.total_bytes <= self.limit_bytes

    def largest(self, count: int = 3) -> tuple[MemoryPart, ...]:
        """The biggest parts, biggest first."""
        return tuple(sorted(self.parts, key=lambda part: -part.bytes)[:count])


def parts(*candidates: MemoryPart) -> tuple[MemoryPart, ...]:
    """The parts that are not empty."""
    return tuple(part for part in candidates if part.bytes)
