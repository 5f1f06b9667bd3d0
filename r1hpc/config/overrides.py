"""--set section.name=value."""

from __future__ import annotations

from dataclasses import replace

from r1hpc.config.modernize import plain_name
from r1hpc.config.schema import Config
from r1hpc.config.source import Layer, Origin, Problem
from r1hpc.config.structure import owners
from r1hpc.config.yaml_core import parse_value


def read_override(override: str) -> tuple[Layer, list[Problem]]:
    """The layer of one override `a.b=value`; the value is read as YAML."""
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    origin = Origin(f"--set {override}")
    layer = Layer(origin)
    if not equals or not all(path):
        return layer, [Problem(origin, "is written --set section.name=value")]
    if path[0] in Config.model_fields and len(path) == 1:
        return layer, [Problem(origin, f"names a section; write {path[0]}.name=value")]
    if len(path) == 1:
        homes = owners(plain_name(path[0], ""))
        meant = " or ".join(f"{home}.{plain_name(path[0], '')}" for home in homes)
        return layer, [Problem(origin, f"names no section; write {meant or 'section.name=value'}")]
    if path[0] not in (*Config.model_fields, "vars"):
        layer.put(path[:1], {}, origin)  # reported with the unknown sections, and its nearest name
        return layer, []
    value, problems = parse_value(text.strip(), path, origin)
    if not problems:
        layer.put(path, value, origin if isinstance(value, list | dict) else replace(origin, written=text.strip()))
    return layer, problems
