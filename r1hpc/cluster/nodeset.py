"""Node sets as text: `node[01-03,07]` to names and back, through ClusterShell."""

from __future__ import annotations

from collections.abc import Iterable

from ClusterShell.NodeSet import RESOLVER_NOGROUP, NodeSet, NodeSetParseError


def expand(text: str) -> list[str]:
    """The names of a node set, in its own natural order. Raises ValueError naming the faulty part.

    Groups (@name) are refused: resolving one runs a command of the site.
    """
    if text.count("[") > text.count("]"):
        part = text[: text.rindex("[")].split(",")[-1] + text[text.rindex("[") :]
        raise ValueError(f'"{part}" has an unclosed range')
    if text.startswith("@"):
        raise ValueError(f'"{text}" is a node group: write its nodes')
    try:
        return list(NodeSet(text, resolver=RESOLVER_NOGROUP))
    except NodeSetParseError as error:
        raise ValueError(f'"{text}" is no node set: {error}') from None


def fold(names: Iterable[str]) -> str:
    """The names as the shortest node set: node[01-03,07]."""
    return str(NodeSet.fromlist(list(names), resolver=RESOLVER_NOGROUP))
