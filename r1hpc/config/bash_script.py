"""Reads a launch script of bash flag arrays, NAME_ARGS=( --flag value ... ), without running it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from r1hpc.config.bash_lexer import Token, tokens

_ARRAY_START = re.compile(r"(?P<name>[A-Za-z_]\w*)\+?=")
_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True)
class Flag:
    """One flag with its values, and where it stands."""

    name: str
    """Without the dashes in front: save-interval."""
    values: tuple[str, ...]
    array: str
    """The array, or the program that it is given to directly."""
    line: int
    unread: str | None = None
    """The part of a value that only running the script would tell."""


@dataclass
class Script:
    """What a launch script says."""

    flags: list[Flag] = field(default_factory=list)
    """In the order in which the program gets them."""
    variables: dict[str, str] = field(default_factory=dict)
    """NAME=value of the script, and the defaults of ${NAME:-value}."""
    notices: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_script(text: str, label: str) -> Script:
    """The flags and variables of `text`; `label` names the script in notices and problems."""
    return _Reader(label).read(list(tokens(text)))


class _Reader:
    def __init__(self, label: str) -> None:
        self._label = label
        self._script = Script()
        self._arrays: dict[str, list[Token]] = {}
        self._command: tuple[str, list[Token]] | None = None

    def read(self, stream: Sequence[Token]) -> Script:
        statement: list[Token] = []
        at = 0
        while at < len(stream):
            token = stream[at]
            if self._starts_array(stream, at):
                at = self._array(stream, at)
            elif token.kind == "word":
                statement.append(token)
                at += 1
            else:
                self._statement(statement)
                statement = []
                at += 1
        self._statement(statement)
        self._flags_in_order()
        return self._script

    def _starts_array(self, stream: Sequence[Token], at: int) -> bool:
        following = stream[at + 1] if at + 1 < len(stream) else None
        is_name = stream[at].kind == "word" and _ARRAY_START.fullmatch(stream[at].text) is not None
        return is_name and following is not None and following.kind == "operator" and following.text == "("

    def _array(self, stream: Sequence[Token], at: int) -> int:
        """Take the array that starts at `at`; return where the script goes on."""
        name = stream[at].text.rstrip("+=")
        words = self._arrays.setdefault(name, []) if stream[at].text.endswith("+=") else []
        self._arrays[name] = words
        for end in range(at + 2, len(stream)):
            token = stream[end]
            if token.kind == "operator":
                if token.text == ")":
                    return end + 1
                self._problem(token.line, f"{name} holds {token.text!r} outside quotes: the array cannot be read")
            elif token.kind == "word":
                words.append(token)
        self._problem(stream[at].line, f"{name} is never closed: a ')' is missing")
        return len(stream)

    def _statement(self, words: list[Token]) -> None:
        if not words:
            return
        first = words[0].text
        if first in ("source", "."):
            name = words[1].text if len(words) > 1 else ""
            rule = "the model comes from config.json, other flags of that file are missing here"
            self._notice(words[0].line, f"source {name} is not read: {rule}")
        program = next((at for at, word in enumerate(words) if word.text.endswith(".py")), None)
        if program is not None and any(word.array for word in words[program:]):
            self._command = (words[program].text, words[program + 1 :])
        for word in words[1:] if first in ("export", "declare", "readonly", "local") else words[:1]:
            self._assignment(word)

    def _assignment(self, word: Token) -> None:
        assignment = _ASSIGNMENT.fullmatch(word.text)
        if assignment is None or word.unread is not None:
            return
        name, value = assignment["name"], assignment["value"]
        if value == f"${{{name}}}" and name in word.defaults:  # NAME=${NAME:-value}
            value = word.defaults[name]
        if f"${{{name}}}" not in value:
            self._script.variables[name] = value

    def _flags_in_order(self) -> None:
        """Flags as the program gets them: in the order of its command line, or of the arrays where there is none."""
        if self._command is not None:
            program, words = self._command
            self._read_flags(program, words)
        else:
            for name, words in self._arrays.items():
                self._read_flags(name, words)

    def _read_flags(self, array: str, words: Sequence[Token]) -> None:
        if not any(word.array or word.text.startswith("--") for word in words):
            return  # an array of the script's own
        flag: Token | None = None
        values: list[Token] = []
        for word in words:
            if word.text.startswith("--") or word.array:
                self._finish(array, flag, values)
                flag, values = (None, []) if word.array else (word, [])
            elif word.text == "...":
                self._notice(word.line, f"{array} has a placeholder (...): what belongs there is not imported")
            elif flag is None:
                self._problem(word.line, f"{array}: {word.text} stands before any flag")
            else:
                values.append(word)
            if word.array in self._arrays:
                self._read_flags(word.array, self._arrays[word.array])
            elif word.array:
                self._notice(word.line, f"{array}: ${{{word.array}[@]}} is not set in this script")
        self._finish(array, flag, values)

    def _finish(self, array: str, flag: Token | None, values: Sequence[Token]) -> None:
        if flag is None:
            return
        name, equals, value = flag.text.removeprefix("--").partition("=")
        texts = (*([value] if equals else []), *(word.text for word in values))
        for word in (flag, *values):
            self._script.variables |= {k: v for k, v in word.defaults.items() if k not in self._script.variables}
        unread = next((word.unread for word in (flag, *values) if word.unread), None)
        self._script.flags.append(Flag(name, texts, array, flag.line, unread))

    def _notice(self, line: int, text: str) -> None:
        self._script.notices.append(f"{self._label}:{line}: {text}")

    def _problem(self, line: int, text: str) -> None:
        self._script.problems.append(f"{self._label}:{line}: {text}")
