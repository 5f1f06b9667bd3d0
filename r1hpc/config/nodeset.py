"""Checks a node set as Slurm's options take it: node[01-03,07],login1."""

from __future__ import annotations

import re

_RANGES = r"\[\d{1,9}(?:-\d{1,9})?(?:,\d{1,9}(?:-\d{1,9})?)*\]"
_NODES = re.compile(rf"(?:[A-Za-z0-9._-]|{_RANGES})+")
_COMMA_BETWEEN_NAMES = re.compile(r",(?![^\[]*\])")


def check_node_set(value: str) -> str:
    """`value` itself. Raises ValueError naming the part that is no name or range of names."""
    for part in _COMMA_BETWEEN_NAMES.split(value):
        if part.count("[") > part.count("]"):
            raise ValueError(f'"{part}" has an unclosed range: write node[01-03,07]')
        if not _NODES.fullmatch(part):
            raise ValueError(f'"{part}" is no node: write names and ranges of names, such as node[01-03,07],login1')
        for low, high in re.findall(r"(?<=[\[,])(\d+)-(\d+)", part):
            if int(low) > int(high):
                raise ValueError(f'"{part}": the range {low}-{high} runs backwards')
    return value
