"""What a rule between keys is, and what it says where it is broken."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from r1hpc.config.schema import Config


@dataclass(frozen=True)
class Broken:
    """A rule that does not hold: the key to show, and the rule with its numbers and the way out."""

    key: str
    text: str


@dataclass(frozen=True)
class Rule:
    """A check that reads only `sections`, so that it can run while others are still wrong."""

    sections: tuple[str, ...]
    check: Callable[[Config], Iterator[Broken]]
