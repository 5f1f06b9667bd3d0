"""The schema as data: sections, their fields, and what a field takes in words."""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from r1hpc.config.base import OpenSection, Words
from r1hpc.config.schema import Config


def section_type(section: str) -> type[BaseModel]:
    """The model of a section. Raises KeyError for a name that is none."""
    annotation = Config.model_fields[section].annotation
    assert isinstance(annotation, type) and issubclass(annotation, BaseModel), f"section {section} is no model"
    return annotation


def section_fields(section: str) -> dict[str, FieldInfo]:
    """The fields of a section by name."""
    return section_type(section).model_fields


def is_open(section: str) -> bool:
    """Whether the section passes further arguments on to a library."""
    return issubclass(section_type(section), OpenSection)


def all_keys() -> Iterator[str]:
    """Every key of the schema as section.name."""
    for section in Config.model_fields:
        yield from (f"{section}.{name}" for name in section_fields(section))


def owners(name: str) -> list[str]:
    """The sections that have a field of this name."""
    return [section for section in Config.model_fields if name in section_fields(section)]


def field_words(field: FieldInfo) -> str:
    """What a field takes: `whole number, at least 1`, `full or selective, or null`."""
    return type_words(field.annotation, tuple(field.metadata))


def key_words(path: Sequence[str]) -> str:
    """What the key at `path` takes; below a field, what an item of that field takes."""
    field = section_fields(path[0])[path[1]]
    if len(path) == 2:
        return field_words(field)
    *_, item = (arg for arg in get_args(field.annotation) if arg is not Ellipsis)
    return type_words(item)


def type_words(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """What a type takes, in words."""
    for item in metadata:
        if isinstance(item, Words):
            return item.text
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *extra = get_args(annotation)
        return type_words(inner, tuple(extra))
    if origin in (Union, types.UnionType):
        parts = [arg for arg in get_args(annotation) if arg is not type(None)]
        words = " or ".join(type_words(part) for part in parts)
        return f"{words}, or null" if type(None) in get_args(annotation) else words
    if origin is Literal:
        return " or ".join(str(choice) for choice in get_args(annotation))
    if origin is tuple:
        return f"list of {type_words(get_args(annotation)[0])}"
    if origin is dict:
        return f"mapping of names to {type_words(get_args(annotation)[1])}"
    name = {int: "whole number", float: "number", bool: "true or false", str: "text"}[annotation]
    return ", ".join([name, *_bounds(metadata)])


def _bounds(metadata: tuple[Any, ...]) -> Iterator[str]:
    for item in metadata:
        # Field(ge=1) inside Annotated keeps its bounds in its own metadata.
        if isinstance(item, FieldInfo):
            yield from _bounds(tuple(item.metadata))
        elif isinstance(item, annotated_types.Ge):
            yield f"at least {item.ge}"
        elif isinstance(item, annotated_types.Gt):
            yield f"above {item.gt}"
        elif isinstance(item, annotated_types.Le):
            yield f"at most {item.le}"
        elif isinstance(item, annotated_types.Lt):
            yield f"below {item.lt}"
