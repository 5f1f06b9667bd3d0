"""The base of every section: frozen, strict, unknown keys refused, field docstrings kept for `explain`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from r1hpc.config.duration import parse_minutes

_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_SLICED_PATH = re.compile(r"(?P<path>(?:(?!@\[).)+)(?P<slice>@\[(?:-?\d+)?:(?:-?\d+)?\])?")


class Section(BaseModel):
    """A frozen section of the configuration; an unknown key is an error, and text is no number."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        validate_default=True,
    )


class OpenSection(Section):
    """A frozen section that also carries arguments of a library, checked by name against that library."""

    model_config = ConfigDict(extra="allow")

    @property
    def passed_through(self) -> dict[str, object]:
        """The arguments that r1hpc does not know and hands to the library as they are."""
        return dict(self.__pydantic_extra__ or {})


@dataclass(frozen=True)
class Words:
    """What a field takes, for people, where its type does not say it."""

    text: str


def split_slice(value: str) -> tuple[str, str]:
    """`path@[a:b]` as (path, `@[a:b]`); no slice gives an empty second part. Raises ValueError for another form."""
    match = _SLICED_PATH.fullmatch(value)
    if match is None:
        raise ValueError("a slice is written path@[a:b], with whole numbers or nothing for a and b")
    return match["path"], match["slice"] or ""


def _import_path(value: str) -> str:
    if not _IMPORT_PATH.fullmatch(value):
        raise ValueError("must be an import path: package.module.function")
    return value


def _sliced_path(value: str) -> str:
    split_slice(value)
    return value


Minutes = Annotated[
    int, BeforeValidator(parse_minutes), Field(ge=1, le=525_600), Words("minutes, or a Slurm time such as 1-12:30:00")
]
"""Whole minutes; also accepts Slurm's forms: 90, "90", "1:30:00", "1-12", "1-12:30", "1-12:30:00"."""
ImportPath = Annotated[str, AfterValidator(_import_path), Words("import path")]
"""package.module.function"""
SlicedPath = Annotated[str, AfterValidator(_sliced_path), Words("path, or path@[a:b]")]
"""A path, of which a slice of the lines may be meant: path@[a:b]."""
TextList = Annotated[tuple[str, ...], Field(strict=False)]
"""A list of texts; YAML gives a list where the frozen field is a tuple."""
