"""Checks the arguments that pass through `sglang:` and `megatron:` to the libraries, by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

from r1hpc.config.libraries import megatron_fields, sglang_arguments
from r1hpc.config.nearest import nearest
from r1hpc.config.owned import MEGATRON_OWNED, SGLANG_OWNED
from r1hpc.config.portable import PASSED
from r1hpc.config.source import Layer, Problem
from r1hpc.config.structure import owners, section_fields, type_words
from r1hpc.config.validate import about


@dataclass(frozen=True)
class _Library:
    section: str
    name: str
    owned: dict[str, str]
    installed_names: Callable[[], Collection[str] | None]
    passed: Mapping[str, Any] | None = None
    """The only arguments that are passed on, and what they take; None passes on all that are not owned."""


_LIBRARIES: Final = (
    _Library("sglang", "SGLang", SGLANG_OWNED, sglang_arguments),
    _Library("megatron", "Megatron", MEGATRON_OWNED, megatron_fields, PASSED),
)


def refusal(section: str, name: str) -> str | None:
    """Why the argument `name` cannot stand in the open section `section`; None where it is passed on."""
    library = next(library for library in _LIBRARIES if library.section == section)
    return next(_rules(library, name, library.installed_names()), None)


def check_passed_through(layer: Layer) -> tuple[list[str], list[Problem]]:
    """Notices and problems of every argument that the schema itself does not know."""
    notices: list[str] = []
    problems: list[Problem] = []
    for library in _LIBRARIES:
        values = layer.values.get(library.section)
        names = values if isinstance(values, dict) else {}
        unknown = [name for name in names if name not in section_fields(library.section)]
        if not unknown:
            continue
        # Reading the library's source costs 15 ms, so it happens only where there is a name to look for.
        installed = library.installed_names()
        if installed is None:
            notices.append(f"{library.section}: {library.name} is not installed, so unchecked: {', '.join(unknown)}")
        for name in unknown:
            path = (library.section, name)
            rule = next(_rules(library, name, installed), None) or _expected(library, name, layer.value_at(path))
            if rule is not None:
                problems.append(Problem(layer.where(path), rule, about(layer, path)))
    return notices, problems


def _rules(library: _Library, name: str, installed: Collection[str] | None) -> Iterator[str]:
    """What speaks against passing `name` on."""
    homes = [home for home in owners(name) if home != library.section]
    if name in library.owned:
        yield f"cannot be set here: {library.owned[name]}"
    if homes:
        yield f"belongs to {' or '.join(homes)}: write it there"
    if installed is not None and name not in installed:
        close = nearest(name, [*section_fields(library.section), *installed])
        yield f"the installed {library.name} has no such argument" + (f"; did you mean {close}?" if close else "")
    if installed is not None and library.passed is not None and name not in library.passed:
        yield f"cannot be set here: the layers of r1hpc were not written for this field of {library.name}"


def _expected(library: _Library, name: str, value: object) -> str | None:
    """What the argument takes, where r1hpc knows it and `value` is something else."""
    if library.passed is None or name not in library.passed:
        return None
    try:
        TypeAdapter(library.passed[name], config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError:
        return f"expected: {type_words(library.passed[name])}"
    return None
