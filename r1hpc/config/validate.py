"""Turns the values of a layer into sections; every problem in the words of a person, not of a validator."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from r1hpc.config.nearest import nearest
from r1hpc.config.schema import Config
from r1hpc.config.source import KeyPath, Layer, Problem, dotted
from r1hpc.config.structure import all_keys, key_words, owners, section_fields, section_type

_LONGEST_VALUE = 60
_NOT_FINITE = ("nan", "inf", "infinity")
_YAML_1_1_BOOLEANS = {"yes": "true", "on": "true", "y": "true", "no": "false", "off": "false", "n": "false"}


def validate_sections(layer: Layer, known_broken: Collection[KeyPath]) -> tuple[dict[str, BaseModel], list[Problem]]:
    """The sections that are right, and every problem of the others.

    known_broken: keys whose problem has been reported already; they get no second one.
    """
    problems = [_unknown_section(layer, name) for name in layer.values if name not in Config.model_fields]
    sections: dict[str, BaseModel] = {}
    for name in Config.model_fields:
        try:
            # A section with nothing under it is written `eval:` and reads as null.
            written = layer.values.get(name)
            sections[name] = section_type(name).model_validate({} if written is None else written)
        except ValidationError as error:
            details = {_written_path(layer, (name, *map(str, e["loc"])), e): e for e in error.errors(include_url=False)}
            problems += [_problem(layer, path, e) for path, e in details.items() if path not in known_broken]
    for name in {path[0] for path in known_broken}:
        sections.pop(name, None)
    return sections, problems


def shown(value: object) -> str:
    """A value as it could be written in YAML, cut where it is long."""
    is_word = isinstance(value, str) and value.isprintable() and value and " " not in value
    text = str(value) if is_word else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."


def _unknown_section(layer: Layer, name: str) -> Problem:
    homes = owners(name)
    if homes:
        hint = f"belongs to {' or '.join(homes)}: write it under {homes[0]}:"
    else:
        close = nearest(name, Config.model_fields)
        hint = f"did you mean {close}?" if close else f"the sections are vars, {', '.join(Config.model_fields)}"
    return Problem(layer.where((name,)), f"{name}: unknown section; {hint}")


def _written_path(layer: Layer, path: KeyPath, error: ErrorDetails) -> KeyPath:
    """`path` without the parts that only the validator knows, such as the branch of a union."""
    if error["type"] == "missing":
        return path
    absent = object()
    while len(path) > 1 and layer.value_at(path, absent) is absent:
        path = path[:-1]
    return path


def _problem(layer: Layer, path: KeyPath, error: ErrorDetails) -> Problem:
    origin = layer.where(path)
    if error["type"] == "missing":
        field = section_fields(path[0])[path[1]]
        return Problem(origin, f"{dotted(path)}: required and not set: {first_sentence(field.description)}")
    if error["type"] == "extra_forbidden":
        return Problem(origin, unknown_key(path), about(layer, path))
    if len(path) == 1:
        return Problem(origin, "is a section: write its keys under it, indented", about(layer, path))
    return Problem(origin, _rule(path, error, origin.written), about(layer, path))


def about(layer: Layer, path: KeyPath) -> str:
    """`perf.context_parallel_size = 3`, as written in `layer`."""
    value, written = layer.value_at(path), layer.where(path).written
    is_as_written = written is not None and type(value) in (int, float) and "${" not in written
    return f"{dotted(path)} = {shown(written if is_as_written else value)}"


def unknown_key(path: KeyPath) -> str:
    """Why `path` is no key, and which one was probably meant."""
    section, name = path[0], path[-1]
    homes = [home for home in owners(name) if home != section]
    if homes:
        return f"unknown key; {name} belongs to {' or '.join(homes)}"
    close = nearest(name, section_fields(section))
    if close:
        return f"unknown key; did you mean {close}?"
    elsewhere = nearest(name, {key.partition(".")[2] for key in all_keys()})
    if elsewhere:
        return f"unknown key; did you mean {elsewhere}, which belongs to {' or '.join(owners(elsewhere))}?"
    return f"unknown key; `python -m r1hpc.config explain {section}` lists the keys of {section}"


def _rule(path: KeyPath, error: ErrorDetails, written: str | None) -> str:
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] in ("int_type", "float_type") and str(error["input"]).strip(" +-.").lower() in _NOT_FINITE:
        return "must be finite"  # `nan` is text in YAML, where `.nan` is the number
    say = _RULES.get(error["type"])
    if say is not None:
        return say(error) + _ALSO.get(path, "")
    return f"expected: {key_words(path)}{_hint(error, written)}"


def _hint(error: ErrorDetails, written: str | None) -> str:
    value: Any = error["input"]
    kind = error["type"]
    if value is None:
        return "; nothing is written after the colon (or null)"
    if kind == "bool_type" and str(value).lower() in _YAML_1_1_BOOLEANS:
        return f"; write {_YAML_1_1_BOOLEANS[str(value).lower()]}"
    if kind == "int_type" and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if kind in ("int_type", "float_type") and isinstance(value, str) and _is_number(value):
        return f"; this is text: write {value.replace('_', '').replace(',', '').strip()} without quotes"
    if kind == "string_type" and isinstance(value, int | float):
        # As it is written: 00123 is an account, and 123 is another one.
        text = written or (str(value).lower() if isinstance(value, bool) else value)
        return f'; write "{text}" in quotes'
    if kind == "tuple_type":
        return "; write one item a line, each after a dash"
    return ""


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "").strip())
    except ValueError:
        return False
    return True


def _number(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else f"{bound:g}"


_RULES: Final[dict[str, Callable[[ErrorDetails], str]]] = {
    "greater_than_equal": lambda error: f"must be at least {_number(error['ctx']['ge'])}",
    "greater_than": lambda error: f"must be above {_number(error['ctx']['gt'])}",
    "less_than_equal": lambda error: f"must be at most {_number(error['ctx']['le'])}",
    "less_than": lambda error: f"must be below {_number(error['ctx']['lt'])}",
    "finite_number": lambda error: "must be finite",
    "literal_error": lambda error: f"must be {error['ctx']['expected'].replace(chr(39), '')}",
}
"""pydantic error type to the rule in words, where the bound itself says more than the kind of the field."""
_ALSO: Final[dict[KeyPath, str]] = {
    ("rollout", "rm_type"): "; a function of your own goes to custom_rm_path, with rm_type left out",
}
"""What is added to a rule where another key may have been meant."""


def first_sentence(description: str | None) -> str:
    """The first sentence of a field's docstring, on one line."""
    return (description or "").replace("\n", " ").partition(". ")[0].rstrip(".")
