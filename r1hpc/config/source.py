"""Values together with the place that each was written at, so that every message can say file:line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KeyPath = tuple[str, ...]
"""("perf", "context_parallel_size"); list items have their index as a part."""


@dataclass(frozen=True)
class Origin:
    """A place that a value was written at."""

    label: str
    """The file as the user named it, or the override as typed: `--set perf.context_parallel_size=2`."""
    line: int | None = None
    directory: Path | None = None
    """Directory of the file, for paths that are relative to it; None for an override."""
    written: str | None = field(default=None, compare=False)
    """An unquoted value as it stands in the text: 00123, which reads as 123."""

    @property
    def is_override(self) -> bool:
        """Whether this is a --set rather than a file."""
        return self.label.startswith("--set ")

    def __str__(self) -> str:
        return self.label if self.line is None else f"{self.label}:{self.line}"


@dataclass(frozen=True)
class Notice:
    """One thing to know, and where it comes from."""

    origin: Origin
    text: str

    def __str__(self) -> str:
        return f"{self.origin}: {self.text}"


@dataclass(frozen=True)
class Problem:
    """One thing to put right, and where."""

    origin: Origin
    text: str
    """The rule, with its arithmetic and the way out."""
    about: str = ""
    """The key and its value: `hosts.num_nodes = 0`."""

    def __str__(self) -> str:
        # An override says its key and value itself.
        return ": ".join(filter(None, [str(self.origin), "" if self.origin.is_override else self.about, self.text]))


@dataclass
class Layer:
    """The values of one file or override, nested as written, and the origin of each key."""

    origin: Origin
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    readable: bool = True
    """False for a file that is absent or not YAML: it is unknown what it would have said."""

    def where(self, path: KeyPath) -> Origin:
        """The origin of `path`, or of the innermost section around it that was written."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.origins:
                return self.origins[path[:length]]
        return self.origin

    def pop(self, path: KeyPath) -> tuple[Any, Origin]:
        """Take `path` out and return its value and origin."""
        origin = self.where(path)
        value = _mapping_at(self.values, path[:-1]).pop(path[-1])
        self._forget(path)
        return value, origin

    def put(self, path: KeyPath, value: object, origin: Origin) -> None:
        """Write `value` at `path`; sections on the way are made."""
        mapping = self.values
        for length, part in enumerate(path[:-1], start=1):
            if not isinstance(mapping.get(part), dict):
                mapping[part] = {}
            self.origins.setdefault(path[:length], origin)
            mapping = mapping[part]
        self._forget(path)
        mapping[path[-1]] = value
        self.origins[path] = origin

    def overlay(self, upper: Layer) -> None:
        """Lay `upper` over this layer: sections merge key by key, everything else is replaced.

        A section with nothing under it (`slurm:`, which reads as null) changes nothing.
        """
        for path, value in walk(upper.values):
            if isinstance(value, dict | None) and isinstance(self.value_at(path), dict):
                continue
            self.put(path, {} if isinstance(value, dict) else value, upper.where(path))
        for path, origin in upper.origins.items():
            self.origins.setdefault(path, origin)

    def value_at(self, path: KeyPath, absent: Any = None) -> Any:
        """The value at `path`, list items included; `absent` where there is none."""
        value: Any = self.values
        for part in path:
            if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            elif isinstance(value, dict) and part in value:
                value = value[part]
            else:
                return absent
        return value

    def _forget(self, path: KeyPath) -> None:
        for known in [known for known in self.origins if known[: len(path)] == path]:
            del self.origins[known]


def walk(values: Mapping[str, Any], above: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    """Every key of nested mappings, a mapping before its keys; lists are values."""
    for key, value in values.items():
        path = (*above, key)
        yield path, value
        if isinstance(value, dict):
            yield from walk(value, path)


def dotted(path: KeyPath) -> str:
    """`("perf", "seed")` as `perf.seed`."""
    return ".".join(path)


def _mapping_at(values: dict[str, Any], path: KeyPath) -> dict[str, Any]:
    for part in path:
        values = values[part]
    return values
