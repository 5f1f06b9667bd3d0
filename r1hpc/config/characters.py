"""Refuses characters that would break a line of a batch script, a path or a message."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Any

from r1hpc.config.source import KeyPath, Layer, Problem, dotted
from r1hpc.config.validate import about


def check_characters(layer: Layer) -> dict[KeyPath, Problem]:
    """What is wrong with the characters of keys and texts, by key."""
    problems: dict[KeyPath, Problem] = {}
    for path, text in _texts(layer.values):
        rule = _fault(text)
        if rule is not None:
            said = dotted(path).encode("unicode_escape").decode() if text == path[-1] else about(layer, path)
            problems[path] = Problem(layer.where(path), rule, said)
    return problems


def _texts(value: Any, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    """Every key and every text below `value`, items of lists included."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, (*path, str(index)))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key), key
            yield from _texts(item, (*path, key))


def _fault(text: str) -> str | None:
    for character in text:
        category = unicodedata.category(character)
        if character in "\n\r":
            return "holds a line break: write one line (a block ends in a break of its own: take >- or |-)"
        if category == "Cc":
            return f"holds the control character {character!r}: remove it"
        if category == "Cs":
            return f"holds {character!r}, which is no UTF-8 text: remove it"
    return None
