"""The story of a plan as plain text of at most 92 columns."""

from __future__ import annotations

from textwrap import fill

from r1hpc.plan.memory import MemoryUse
from r1hpc.plan.outline import Bullet, Gauge, Item, Line, Section, Table
from r1hpc.plan.plan import Plan
from r1hpc.plan.story import headline, tell
from r1hpc.plan.units import show_bytes

WIDTH = 92
GAUGE_CELLS = 20


def render_plan(plan: Plan) -> str:
    """The plan in one or two screens; ends with a newline."""
    return "\n\n".join([headline(plan), *(_section(section) for section in tell(plan))]) + "\n"


def gauge_cells(use: MemoryUse, cells: int) -> int:
    """Filled cells of a gauge: at least one where there is anything, all of them at the limit."""
    share = use.total_bytes / use.limit_bytes
    return min(cells, max(1 if use.total_bytes else 0, round(cells * share)))


def _section(section: Section) -> str:
    labels = [item.label for item in section.items if isinstance(item, Line | Gauge)]
    width = max(map(len, labels), default=0)
    lines = [_item(item, width) for item in section.items]
    return "\n".join([section.title, *lines])


def _item(item: Item, label_width: int) -> str:
    match item:
        case Bullet(text):
            return fill(text, WIDTH, initial_indent="  - ", subsequent_indent="    ")
        case Line(label, text):
            return _wrapped(label, label_width, text)
        case Gauge(label, use, text):
            filled = gauge_cells(use, GAUGE_CELLS)
            bar = "#" * filled + "." * (GAUGE_CELLS - filled)
            share = use.total_bytes / use.limit_bytes
            return _wrapped(label, label_width, f"[{bar}] {share:4.0%} {show_bytes(use.total_bytes)}; {text}")
        case Table(headers, rows):
            return _table(headers, rows)


def _wrapped(label: str, width: int, text: str) -> str:
    head = f"  {label:<{width}}  "
    return fill(text, WIDTH, initial_indent=head, subsequent_indent=" " * len(head), break_long_words=False)


def _table(headers: tuple[str, ...], rows: tuple[tuple[str, ...], ...]) -> str:
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    return "\n".join(
        "  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
        for row in (headers, *rows)
    )
