"""YAML 1.2's core schema over PyYAML's parser, with the line of every key.

PyYAML constructs YAML 1.1, where 24:00:00 is 86400, 1e-6 is text, and no, on and yes are booleans. Only its composer is
used here; scalars are resolved as https://yaml.org/spec/1.2.2/#103-core-schema says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from r1hpc.config.source import KeyPath, Layer, Origin, Problem, dotted

_TAG = "tag:yaml.org,2002:"
CORE_SCHEMA = (
    (_TAG + "null", re.compile(r"(?:null|Null|NULL|~|)$"), ["n", "N", "~", ""]),
    (_TAG + "bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), ["t", "T", "f", "F"]),
    (_TAG + "int", re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    (
        _TAG + "float",
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
)
"""(tag, pattern, first characters), in the order in which they are tried."""


_LEVELS_AT_MOST = 20
_UNREADABLE = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x9f\\ud800-\\udfff]")
_TOO_DEEP = f"is nested more than {_LEVELS_AT_MOST} levels deep"


class PlainText(str):
    """Unquoted text that refers to ${NAME}: once that is replaced, the result is resolved again."""


class _CoreLoader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own protocol)


for _tag, _pattern, _first in CORE_SCHEMA:
    _CoreLoader.add_implicit_resolver(_tag, _pattern, _first)


def resolve_scalar(text: str) -> str | int | float | bool | None:
    """The value that the unquoted scalar `text` stands for."""
    for tag, pattern, _ in CORE_SCHEMA:
        if pattern.match(text):
            return _construct(tag.removeprefix(_TAG), text)
    return text


def read_yaml(path: Path, label: str) -> tuple[Layer, list[Problem]]:
    """The mapping in the file `path`, and what is wrong with it; a file that cannot be read gives an empty layer."""
    origin = Origin(label, directory=path.absolute().parent)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        return Layer(origin, readable=False), [Problem(origin, f"cannot be read: {error.strerror}")]
    except UnicodeDecodeError as error:
        return Layer(origin, readable=False), [
            Problem(origin, f"is not UTF-8 text: byte {error.start} is {error.object[error.start]:#x}")
        ]
    return parse_yaml(text, origin)


def parse_yaml(text: str, origin: Origin) -> tuple[Layer, list[Problem]]:
    """The mapping in `text` and what is wrong with it."""
    try:
        node = _compose(text)
    except yaml.YAMLError as error:
        return Layer(origin, readable=False), [_syntax_problem(error, origin)]
    except RecursionError:
        return Layer(origin, readable=False), [Problem(origin, _TOO_DEEP)]
    if not isinstance(node, yaml.MappingNode):
        kind = "is empty" if node is None else "holds no mapping"
        return Layer(origin, readable=False), [Problem(origin, f"{kind}: write sections such as run:, hosts:, ckpt:")]
    reader = _NodeReader(Layer(origin))
    reader.layer.values = reader.mapping(node, ())
    return reader.layer, reader.problems


def parse_value(text: str, path: KeyPath, origin: Origin) -> tuple[Any, list[Problem]]:
    """The value that `text` stands for at `path`, as on the right of a colon."""
    if not text and path[:1] == ("vars",):
        return text, []
    try:
        node = _compose(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        fix = "remove it" if _UNREADABLE.search(text) else "put it in quotes"
        return None, [Problem(origin, f"the value is not YAML: {problem}; {fix}")]
    except RecursionError:
        return None, [Problem(origin, _TOO_DEEP)]
    if node is None:
        return None, []
    reader = _NodeReader(Layer(origin))
    return reader.value(node, path), reader.problems


class _NodeReader:
    """Turns composed nodes into values, noting the line of every key and every problem on the way."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.problems: list[Problem] = []
        self._open: set[int] = set()

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first_lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            origin = self._origin(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self.problems.append(Problem(origin, f"{dotted(path) or 'the file'}: a key must be a plain word"))
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key == "<<":
                self.problems.append(Problem(origin, f"{dotted(here)}: merge keys are not read; use a site file"))
            elif key in values:
                rule = f"{dotted(here)}: given twice, first at line {first_lines[key]}; keep one"
                self.problems.append(Problem(origin, rule))
            else:
                first_lines[key] = origin.line or 0
                self.layer.origins[here] = _as_written(origin, value_node)
                values[key] = self.value(value_node, here)
        return values

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        if id(node) in self._open:
            self.problems.append(
                Problem(self._origin(node), f"{dotted(path)}: an alias (*) refers to what contains it")
            )
            return None
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if len(path) > _LEVELS_AT_MOST:
            self.problems.append(Problem(self._origin(node), f"{'.'.join(path[:2])}: {_TOO_DEEP}"))
            return None
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, path)
            return [self._item(item, (*path, str(index))) for index, item in enumerate(node.value)]
        finally:
            self._open.discard(id(node))

    def _item(self, node: yaml.Node, path: KeyPath) -> Any:
        self.layer.origins[path] = _as_written(self._origin(node), node)
        return self.value(node, path)

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        text = str(node.value)
        if path[:1] == ("vars",) and len(path) > 1:
            return text  # a variable is text: 010 and 1e3 stay as written wherever they are put in
        kind = str(node.tag).removeprefix(_TAG)
        if kind == "str":
            return PlainText(text) if node.style is None and "${" in text else text
        try:
            return _construct(kind, text)
        except (KeyError, ValueError):
            self.problems.append(Problem(self._origin(node), f"{dotted(path)}: cannot read {text!r} as {node.tag}"))
            return None

    def _origin(self, node: yaml.Node) -> Origin:
        source = self.layer.origin
        return Origin(source.label, node.start_mark.line + 1, source.directory) if source.directory else source


def _as_written(origin: Origin, node: yaml.Node) -> Origin:
    is_plain = isinstance(node, yaml.ScalarNode) and node.style is None
    return replace(origin, written=str(node.value)) if is_plain else origin


def _compose(text: str) -> yaml.Node | None:
    found = _UNREADABLE.search(text)
    if found is not None:  # PyYAML folds some of them into spaces and names no line for the others
        at = found.start()
        mark = yaml.Mark("", at, text.count("\n", 0, at), at - text.rfind("\n", 0, at) - 1, None, 0)
        raise yaml.MarkedYAMLError(problem=f"it holds the control character {found[0]!r}", problem_mark=mark)
    loader = _CoreLoader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
        return node
    finally:
        loader.dispose()


def _construct(kind: str, text: str) -> str | int | float | bool | None:
    return {"null": _null, "bool": _bool, "int": _int, "float": _float}[kind](text)


def _null(text: str) -> None:
    return None


def _bool(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


def _int(text: str) -> int:
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def _syntax_problem(error: yaml.YAMLError, origin: Origin) -> Problem:
    mark = getattr(error, "problem_mark", None)
    at = Origin(origin.label, mark.line + 1, origin.directory) if mark else origin
    return Problem(at, "; ".join(_syntax_sentences(error)))


def _syntax_sentences(error: yaml.YAMLError) -> Iterator[str]:
    what = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    mark, context = getattr(error, "problem_mark", None), getattr(error, "context", None)
    column = f" (column {mark.column + 1})" if mark else ""
    yield f"not YAML: {what}{column}"
    if context:
        context_mark = getattr(error, "context_mark", None)
        yield context + (f" that starts at line {context_mark.line + 1}" if context_mark else "")
    if "'\\t'" in what:
        yield "YAML indents with spaces, not with tabs"
