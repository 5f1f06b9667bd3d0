"""Loads a configuration: file, site and overrides laid over each other, every problem reported at once."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel

from r1hpc.config.characters import check_characters
from r1hpc.config.interpolate import Interpolator
from r1hpc.config.modernize import modernize, resolve_references
from r1hpc.config.overrides import read_override
from r1hpc.config.passed_through import check_passed_through
from r1hpc.config.paths import is_path, resolve_paths
from r1hpc.config.rules import RULES
from r1hpc.config.schema import Config
from r1hpc.config.sites import find_site
from r1hpc.config.source import KeyPath, Layer, Problem, dotted
from r1hpc.config.validate import shown, validate_sections
from r1hpc.config.yaml_core import read_yaml
from r1hpc.errors import ConfigError


@dataclass(frozen=True)
class LoadedConfig:
    """A valid configuration and where each value of it was written."""

    config: Config
    path: Path
    """The file as it was named."""
    notices: tuple[str, ...]
    """What a person should read once: older names and how they were understood, names that were not checked."""
    sources: Mapping[str, str]
    """Key (`perf.context_parallel_size`) to `file:line`, or the override, of every key that was written."""

    def where(self, key: str) -> str:
        """`file:line` of `key`, of the section around it when it has its default, of the file when that is absent."""
        parts = key.split(".")
        prefixes = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
        return next((self.sources[prefix] for prefix in prefixes if prefix in self.sources), str(self.path))


def load_config(
    path: Path | str, *, site: str | None = None, overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ
) -> LoadedConfig:
    """Read `path`, lay the site's file and then each override (`a.b=value`) over it, and validate the result.

    Raises ConfigError with every problem found, each with file:line, the value, the rule and the nearest right name.
    """
    path = Path(path)
    layers, problems = _read_layers(path, site, overrides)
    if not all(layer.readable for layer in layers):
        raise _error(problems, layers)
    merged, notices = _merge(layers, problems)
    notices += _shadowed(merged, environ)
    broken = _substitute(merged, environ, problems)
    sections = _validate(merged, broken, notices, problems)
    if problems:
        raise _error(problems, layers)
    sources = {dotted(key): str(origin) for key, origin in merged.origins.items()}
    return LoadedConfig(Config(**cast("dict[str, Any]", sections)), path, tuple(notices), sources)


def _read_layers(path: Path, site: str | None, overrides: Sequence[str]) -> tuple[list[Layer], list[Problem]]:
    """The layers from the lowest to the highest, and what is wrong with their texts."""
    site_path, problems = find_site(site, path) if site is not None else (None, [])
    files = [path] if site_path is None else [path, site_path]
    read = [*(read_yaml(file, str(file)) for file in files), *map(read_override, overrides)]
    for _, found in read:
        problems += found
    return [layer for layer, _ in read], problems


def _merge(layers: Sequence[Layer], problems: list[Problem]) -> tuple[Layer, list[str]]:
    """All layers as one, in today's names."""
    notices: list[str] = []
    merged = Layer(layers[0].origin)
    for layer in layers:
        # Before the merge, so that an older name in a site file overrides the newer one in the file below it.
        said, found = modernize(layer)
        notices += map(str, said)
        problems += found
        merged.overlay(layer)
    resolve_references(merged)
    return merged, notices


def _substitute(merged: Layer, environ: Mapping[str, str], problems: list[Problem]) -> set[KeyPath]:
    """Take `vars` out, put the variables in and make paths absolute; return the keys that stay without a value."""
    variables = Layer(merged.origin)
    if "vars" in merged.values:
        value, origin = merged.values["vars"], merged.where(("vars",))
        variables.overlay(Layer(origin, {"vars": value}, merged.origins))
        merged.values.pop("vars")
        if value is not None and not isinstance(value, dict):
            problems.append(Problem(origin, "is a section of names and texts", f"vars = {shown(value)}"))
            variables.values.clear()
    interpolator = Interpolator(variables, environ, needs_text=is_path)
    merged.values = interpolator.value(merged.values, (), merged)
    problems += interpolator.problems
    unprintable = check_characters(merged)
    broken = interpolator.broken | unprintable.keys()
    no_paths = resolve_paths(merged, broken)
    problems += [*unprintable.values(), *no_paths.values()]
    return broken | no_paths.keys()


def _validate(
    merged: Layer, broken: Collection[KeyPath], notices: list[str], problems: list[Problem]
) -> Mapping[str, BaseModel]:
    sections, found = validate_sections(merged, broken)
    said, refused = check_passed_through(merged)
    notices += said
    problems += found + refused
    # Rules run on what is valid already, so that one wrong key does not hide what is wrong elsewhere.
    partial = Config.model_construct(**cast("dict[str, Any]", sections))
    for rule in RULES:
        if set(rule.sections) <= sections.keys():
            for told in rule.check(partial):
                section, _, name = told.key.partition(".")
                value = getattr(sections[section], name)  # not as written: it may be the default that breaks the rule
                problems.append(Problem(merged.where((section, name)), told.text, f"{told.key} = {shown(value)}"))
    return sections


def _shadowed(merged: Layer, environ: Mapping[str, str]) -> list[str]:
    """Variables that the environment gives another value than `vars`, which win."""
    names = merged.values.get("vars")
    return [
        f"{merged.where(('vars', name))}: vars.{name} = {text} is used, not {name}={environ[name]} of the environment"
        for name, text in (names.items() if isinstance(names, dict) else ())
        if isinstance(text, str)
        and "${" not in text
        and environ.get(name, text) != text
        and not merged.where(("vars", name)).is_override
    ]


def _error(problems: Iterable[Problem], layers: Sequence[Layer]) -> ConfigError:
    """The problems in the order of the layers and of their lines: a person puts them right from the top down."""
    labels = [layer.origin.label for layer in layers]

    def place(problem: Problem) -> tuple[int, int]:
        # What belongs to no layer is about the command line itself, and comes first.
        label = problem.origin.label
        return labels.index(label) if label in labels else -1, problem.origin.line or 0

    return ConfigError([str(problem) for problem in sorted(problems, key=place)])
