"""What the story of a plan is written in: sections of lines, gauges, tables and bullets, for any renderer."""

from __future__ import annotations

from dataclasses import dataclass

from r1hpc.plan.memory import MemoryUse


@dataclass(frozen=True)
class Line:
    """A labelled sentence."""

    label: str
    text: str


@dataclass(frozen=True)
class Gauge:
    """A memory against its limit."""

    label: str
    use: MemoryUse
    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells under headers."""

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Bullet:
    """A paragraph of a list."""

    text: str


Item = Line | Gauge | Table | Bullet


@dataclass(frozen=True)
class Section:
    """A titled part of the story."""

    title: str
    items: tuple[Item, ...]
