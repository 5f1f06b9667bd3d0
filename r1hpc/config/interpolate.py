"""${NAME} in values: from the vars: section first, then from the environment; $${ stands for a literal ${."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from r1hpc.config.nearest import nearest
from r1hpc.config.source import KeyPath, Layer, Origin, Problem, dotted
from r1hpc.config.yaml_core import PlainText, resolve_scalar

_REFERENCE = re.compile(r"\$\$\{|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}|(?P<bad>\$\{[^}]*\}?)")


class Interpolator:
    """Replaces references; remembers what was wrong and which keys it concerns."""

    def __init__(
        self, variables: Layer, environ: Mapping[str, str], needs_text: Callable[[KeyPath], bool] = lambda key: False
    ) -> None:
        """variables: a layer whose only section is `vars`; needs_text: keys in which a variable may not be empty."""
        self._variables = variables
        texts = variables.values.get("vars")
        self._texts: Mapping[str, Any] = texts if isinstance(texts, dict) else {}
        self._environ = environ
        self._needs_text = needs_text
        self._empty: list[str] = []
        self.problems: list[Problem] = []
        self.broken: set[KeyPath] = set()
        self._reported: set[tuple[Origin, str]] = set()

    def value(self, value: Any, path: KeyPath, origins: Layer) -> Any:
        """`value` with every reference in it replaced; mappings and lists are followed."""
        if isinstance(value, dict):
            return {key: self.value(item, (*path, key), origins) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item, (*path, str(index)), origins) for index, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        self._empty.clear()
        text = self._text(value, origins.where(path), dotted(path), ())
        if text is not None and self._empty and self._needs_text(path):
            self._report_empty(self._empty[0], path, value, origins.where(path))
            text = None
        if text is None:
            self.broken.add(path)
            return value
        return resolve_scalar(text) if isinstance(value, PlainText) else text

    def _text(self, text: str, origin: Origin, key: str, chain: tuple[str, ...]) -> str | None:
        """`text` with its references replaced, None when one of them has no value."""
        pieces: list[str] = []
        end = 0
        for match in _REFERENCE.finditer(text):
            pieces.append(text[end : match.start()])
            end = match.end()
            if match["name"]:
                found = self._variable(match["name"], origin, key, chain)
                if found is None:
                    return None
                if not found:
                    self._empty.append(match["name"])
                pieces.append(found)
            elif match["bad"]:
                rule = f"{match['bad']} is no reference: write ${{NAME}}, or $${{ for a literal ${{"
                self._report(Problem(origin, rule, f"{key} = {text}"))
                return None
            else:
                pieces.append("${")
        return "".join([*pieces, text[end:]])

    def _variable(self, name: str, origin: Origin, key: str, chain: tuple[str, ...]) -> str | None:
        if name in chain:
            circle = " -> ".join([*chain[chain.index(name) :], name])
            self._report(Problem(self._variables.where(("vars", name)), f"vars.{name}: refers to itself: {circle}"))
            return None
        if name in self._texts:
            text = self._texts[name]
            if not isinstance(text, str):
                self._report(Problem(self._variables.where(("vars", name)), f"vars.{name}: must be one text"))
                return None
            return self._text(text, self._variables.where(("vars", name)), f"vars.{name}", (*chain, name))
        if name in self._environ:
            return self._environ[name]
        self._report(Problem(origin, f"${{{name}}} is not defined; {self._fix(name)}", key))
        return None

    def _report_empty(self, name: str, path: KeyPath, value: str, origin: Origin) -> None:
        if name in self._texts:
            origin, named = self._variables.where(("vars", name)), f"vars.{name}"
        else:
            named = f"{name} of the environment"
        if not any(problem.about == named for problem in self.problems):
            rule = f"is empty, and {dotted(path)} = {value} is a path: give it a value"
            self.problems.append(Problem(origin, rule if not origin.is_override else f"{named} {rule}", named))

    def _fix(self, name: str) -> str:
        close = nearest(name, self._texts) or nearest(name, self._environ)
        fix = f"set it under vars:, with --set vars.{name}=..., or in the environment"
        return f"did you mean {close}? Or {fix}" if close else fix

    def _report(self, problem: Problem) -> None:
        # The same variable may break many keys: its own problem is said once.
        if (problem.origin, problem.text) not in self._reported:
            self._reported.add((problem.origin, problem.text))
            self.problems.append(problem)
