"""The story of a plan for a terminal, with rich."""

from __future__ import annotations

from itertools import groupby

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from r1hpc.plan.memory import MemoryUse
from r1hpc.plan.outline import Bullet, Gauge, Item, Line, Table
from r1hpc.plan.plan import Plan
from r1hpc.plan.render import GAUGE_CELLS, gauge_cells
from r1hpc.plan.story import headline, tell
from r1hpc.plan.units import show_bytes


def print_plan(plan: Plan, console: Console) -> None:
    """Print the plan on a terminal."""
    console.print(Text(headline(plan), style="bold"))
    for section in tell(plan):
        console.print()
        console.print(Text(section.title, style="bold cyan"))
        for kind, items in groupby(section.items, key=_kind):
            console.print(Padding(_block(kind, list(items), _bar_cells(console.encoding)), (0, 0, 0, 2)))


def _kind(item: Item) -> type:
    """Lines and gauges stand in one grid, so that their texts align."""
    return Line if isinstance(item, Gauge) else type(item)


def _block(kind: type, items: list[Item], cells: tuple[str, str]) -> RenderableType:
    if kind is Table:
        return _table(items)
    grid = RichTable.grid(padding=(0, 2))
    grid.add_column(style="yellow" if kind is Bullet else "dim", no_wrap=True)
    grid.add_column()
    for item in items:
        match item:
            case Bullet(text):
                grid.add_row("-", text)
            case Line(label, text):
                grid.add_row(label, text)
            case Gauge(label, use, text):
                grid.add_row(label, Text.assemble(_bar(use, cells), f" {show_bytes(use.total_bytes)}; {text}"))
    return grid


def _bar_cells(encoding: str) -> tuple[str, str]:
    """A filled and an empty cell of a gauge that a terminal of this encoding can show."""
    try:
        "█░".encode(encoding)
    except UnicodeEncodeError:
        return "#", "."
    return "█", "░"


def _bar(use: MemoryUse, cells: tuple[str, str]) -> Text:
    full, empty = cells
    filled = gauge_cells(use, GAUGE_CELLS)
    share = use.total_bytes / use.limit_bytes
    color = "green" if share < 0.8 else "yellow" if share < 0.95 else "red"
    return Text.assemble((full * filled, color), (empty * (GAUGE_CELLS - filled), "dim"), f" {share:4.0%}")


def _table(tables: list[Item]) -> RichTable:
    rendered = RichTable(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for table in tables:
        if isinstance(table, Table):
            for header in table.headers:
                rendered.add_column(header, justify="right")
            for row in table.rows:
                rendered.add_row(*row)
    return rendered
