"""Numbered names on one line: decoder.layers.3-60.mlp.router.weight."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_NUMBER = re.compile(r"(?<=[._])\d+(?=[._]|$)")


def template(name: str) -> tuple[str, tuple[int, ...]]:
    """The name as a format string with a hole for each of its numbers, and the numbers."""
    escaped = name.replace("{", "{{").replace("}", "}}")
    return _NUMBER.sub("{}", escaped), tuple(int(number) for number in _NUMBER.findall(name))


def fold(numbers: Iterable[tuple[int, ...]]) -> Iterator[tuple[str, ...]]:
    """Ranges that stand for exactly these tuples, all of one length: (3, 0), (3, 1), (4, 0), (4, 1) is 3-4, 0-1."""
    tails: dict[int, set[tuple[int, ...]]] = {}
    for head in numbers:
        if not head:
            yield ()
            return
        tails.setdefault(head[0], set()).add(head[1:])
    alike: dict[frozenset[tuple[int, ...]], list[int]] = {}
    for first, rest in sorted(tails.items()):
        alike.setdefault(frozenset(rest), []).append(first)
    for rest_set, firsts in alike.items():
        for folded in fold(rest_set):
            yield (_ranges(firsts), *folded)


def _ranges(numbers: list[int]) -> str:
    """0-2,5,7-9 of ascending numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
