"""What the variables of a launch script hold where its flags use them, as far as reading it can tell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

_REFERENCE = re.compile(r"(?<!\$)\$\{(\w+)\}")


@dataclass(frozen=True)
class Assignment:
    """One NAME=value, or one default of ${NAME:-value}."""

    value: str | None
    """None where only running the script would tell: $(...), read, a loop."""
    line: int
    offset: int
    is_default: bool = False
    is_conditional: bool = False
    """In an if, case or loop, or after && or ||."""
    is_change: bool = False
    """Made of the value before: DATA=$DATA/x, ARGS+=x."""


@dataclass(frozen=True)
class Use:
    """A flag, or a variable, whose text refers to variables."""

    by: str
    """For messages: --lr."""
    text: str
    line: int
    offset: int


@dataclass(frozen=True)
class Settled:
    """The variables in use with their one value each; those that the script never sets are left to the environment."""

    values: Mapping[str, str]
    notices: Sequence[tuple[int, str]]
    problems: Sequence[tuple[int, str]]


def references(text: str) -> list[str]:
    """The names of the variables that `text` refers to."""
    return _REFERENCE.findall(text)


def settle(uses: Iterable[Use], assignments: Mapping[str, Sequence[Assignment]]) -> Settled:
    """The values of all variables that `uses` need, those inside of values included.

    A configuration gives a variable one value for all places: where a script gives it several, or changes it after its
    use, or only running would tell, that is a problem and not a guess.
    """
    values: dict[str, str] = {}
    notices: dict[tuple[int, str], None] = {}
    problems: dict[tuple[int, str], None] = {}
    pending = [(name, use) for use in uses for name in references(use.text)]
    seen: set[tuple[str, int]] = set()
    while pending:
        name, use = pending.pop(0)
        known = _that_count(assignments.get(name, ()))
        if (name, use.offset) in seen or all(each.value is None and not each.is_change for each in known):
            continue  # the environment, or vars:, must give it
        seen.add((name, use.offset))
        fault = _fault(name, known, use)
        first = known[0]
        if fault is not None:
            problems[fault] = None
            continue
        values[name] = first.value or ""
        if all(each.is_conditional for each in known):
            rule = f"{name} is set under a condition (if, case, loop, && or ||): {name}={first.value} is taken"
            notices[(first.line, rule)] = None
        inner = Use(name, values[name], first.line, first.offset)
        pending += [(other, inner) for other in references(values[name])]
    return Settled(values, list(notices), list(problems))


def _that_count(known: Sequence[Assignment]) -> Sequence[Assignment]:
    """Without the defaults where the variable surely has a value: ${NAME:-value} takes it then."""
    assigned = [each for each in known if not each.is_default]
    return assigned if any(each.value != "" and not each.is_conditional for each in assigned) else known


def _fault(name: str, known: Sequence[Assignment], use: Use) -> tuple[int, str] | None:
    changed = next((each for each in known if each.is_change), None)
    if changed is not None:
        rule = f"{name} is made of its own value before, and {use.by} (line {use.line}) uses it"
        return changed.line, f"{rule}: write the value in its place"
    if len({each.value for each in known}) > 1:
        # A script may set a value again and again: the last lines are those that matter to a reader.
        said = " or ".join(f"{_shown(each.value)} (line {each.line})" for each in known[-4:])
        return use.line, f"{use.by} uses {name}, which is {said}: write the value in its place"
    if known[0].offset > use.offset:
        return use.line, f"{use.by} uses {name}, which is set only after that (line {known[0].line}): set it before"
    return None


def _shown(value: str | None) -> str:
    return "only known by running" if value is None else value or "empty"
