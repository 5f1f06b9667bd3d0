"""Reads a launch script of bash flag arrays, NAME_ARGS=( --flag value ... ), without running it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from r1hpc.config.bash_lexer import Token, tokens
from r1hpc.config.bash_variables import Assignment, Use

_ARRAY_START = re.compile(r"(?P<name>[A-Za-z_]\w*)\+?=")
_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)(?P<append>\+?)=(?P<value>.*)", re.DOTALL)
_OPEN_BLOCK = frozenset({"if", "case", "for", "while", "until", "select"})
_CLOSE_BLOCK = frozenset({"fi", "esac", "done"})
_KEYWORDS = _OPEN_BLOCK | _CLOSE_BLOCK | {"then", "else", "elif", "do", "{", "}", "!", "time"}
_DECLARE = frozenset({"export", "declare", "readonly", "local", "typeset"})


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
    offset: int = 0

    @property
    def use(self) -> Use:
        """What its values take from variables."""
        return Use(f"--{self.name}", " ".join(self.values), self.line, self.offset)


@dataclass
class _Piece:
    """One NAME=( ... ) or NAME+=( ... )."""

    words: list[Token]
    line: int
    appends: bool
    is_conditional: bool
    keeps: bool = False
    """NAME=("${NAME[@]}" ... ): what the array held before is among the words."""

    @property
    def says(self) -> list[tuple[str, str | None, str | None]]:
        return [(word.text, word.array, word.unread) for word in self.words]


@dataclass
class Script:
    """What a launch script says."""

    flags: list[Flag] = field(default_factory=list)
    """In the order in which the program gets them."""
    assignments: dict[str, list[Assignment]] = field(default_factory=dict)
    """NAME=value of the script in its order, and the defaults of ${NAME:-value}."""
    notices: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read_script(text: str, label: str) -> Script:
    """The flags and variables of `text`; `label` names the script in notices and problems."""
    return _Reader(label).read(list(tokens(text)))


class _Reader:
    def __init__(self, label: str) -> None:
        self._label = label
        self._script = Script()
        self._arrays: dict[str, list[_Piece]] = {}
        self._command: tuple[str, list[Token]] | None = None
        self._open_blocks = 0
        self._after_test = False
        """Whether this statement follows && or ||."""

    def read(self, stream: Sequence[Token]) -> Script:
        statement: list[Token] = []
        at = 0
        while at < len(stream):
            token = stream[at]
            if self._starts_array(stream, at):
                at = self._array(stream, at)
                self._after_test = False
                continue
            if token.kind == "unclosed":
                self._problem(token.line, f"{token.text} opens here and is never closed: what follows cannot be read")
            elif token.kind == "word" and not statement and token.text in _KEYWORDS:
                self._keyword(token.text, stream[at + 1 : at + 2])
            elif token.kind == "word":
                statement.append(token)
            else:
                self._statement(statement)
                if token.kind == "operator" or statement:
                    self._after_test = token.text in ("&", "|") and stream[at - 1].text == token.text
                statement = []
            at += 1
        self._statement(statement)
        self._flags_in_order()
        return self._script

    @property
    def _is_conditional(self) -> bool:
        return self._open_blocks > 0 or self._after_test

    def _keyword(self, keyword: str, following: Sequence[Token]) -> None:
        self._open_blocks += (keyword in _OPEN_BLOCK) - (keyword in _CLOSE_BLOCK)
        if keyword in ("for", "select"):
            self._unknown(following)

    def _starts_array(self, stream: Sequence[Token], at: int) -> bool:
        following = stream[at + 1] if at + 1 < len(stream) else None
        is_name = stream[at].kind == "word" and _ARRAY_START.fullmatch(stream[at].text) is not None
        return is_name and following is not None and following.kind == "operator" and following.text == "("

    def _array(self, stream: Sequence[Token], at: int) -> int:
        """Take the array that starts at `at`; return where the script goes on."""
        start = stream[at]
        name = start.text.rstrip("+=")
        before = self._words(name)
        piece = _Piece([], start.line, start.text.endswith("+="), self._is_conditional)
        self._arrays.setdefault(name, []).append(piece)
        for end in range(at + 2, len(stream)):
            token = stream[end]
            if token.kind == "operator":
                if token.text == ")":
                    return end + 1
                self._problem(token.line, f"{name} holds {token.text!r} outside quotes: the array cannot be read")
            elif token.kind == "word":
                is_itself = token.array == name
                piece.words += before if is_itself else [token]
                piece.keeps = piece.keeps or is_itself
            elif token.kind == "unclosed":
                self._problem(token.line, f"{token.text} opens here and is never closed: what follows cannot be read")
        self._problem(start.line, f"{name} is never closed: a ')' is missing")
        return len(stream)

    def _words(self, array: str) -> list[Token]:
        """The words of an array after the pieces that were read so far."""
        words: list[Token] = []
        for piece in self._arrays.get(array, ()):
            words = [*words, *piece.words] if piece.appends else piece.words
        return words

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
        if first in _DECLARE:
            for word in words[1:]:
                self._assignment(word)
        elif first == "read":
            self._unknown(words[1:])
        elif all(_ASSIGNMENT.fullmatch(word.text) for word in words):  # else NAME=value is for one command only
            for word in words:
                self._assignment(word)

    def _assignment(self, word: Token) -> None:
        assignment = _ASSIGNMENT.fullmatch(word.text)
        if assignment is None:
            return
        self._defaults(word)
        name, value = assignment["name"], assignment["value"]
        if value == f"${{{name}}}" and not assignment["append"]:
            if name not in word.defaults:
                return  # export NAME=$NAME
            value = word.defaults[name]  # NAME=${NAME:-value}
        changes = bool(assignment["append"]) or f"${{{name}}}" in value
        known = None if word.unread is not None else value
        self._assigned(name, Assignment(known, word.line, word.offset, False, self._is_conditional, changes))

    def _defaults(self, word: Token) -> None:
        for name, value in word.defaults.items():
            if not word.text.startswith(f"{name}="):
                self._assigned(name, Assignment(value, word.line, word.offset, is_default=True))

    def _unknown(self, words: Sequence[Token]) -> None:
        """Note that a loop or `read` gives these variables values of its own."""
        for word in words:
            if word.text.isidentifier():
                self._assigned(word.text, Assignment(None, word.line, word.offset))

    def _assigned(self, name: str, assignment: Assignment) -> None:
        self._script.assignments.setdefault(name, []).append(assignment)

    def _flags_in_order(self) -> None:
        """Flags as the program gets them: in the order of its command line, or of the arrays where there is none."""
        if self._command is not None:
            program, words = self._command
            self._read_flags(program, words)
        else:
            for name in self._arrays:
                self._read_array(name, ())

    def _read_array(self, name: str, around: tuple[str, ...]) -> None:
        pieces = self._arrays[name]
        if not any(word.array or word.text.startswith("--") for piece in pieces for word in piece.words):
            return  # an array of the script's own
        first = next((piece for piece in pieces if not piece.appends), pieces[0])
        anew = [piece for piece in pieces if not piece.appends and not piece.keeps]
        other = next((piece for piece in anew if piece.says != first.says), None)
        conditional = next((piece for piece in pieces if piece.is_conditional), None)
        if name in around:
            self._problem(first.line, f"{name} contains itself: {' -> '.join([*around, name])}")
            return
        if conditional is not None:
            rule = f"{name} is set under a condition (if, case, loop, && or ||): write the flags that hold here"
            self._problem(conditional.line, rule)
        elif other is not None:
            self._problem(other.line, f"{name} was given other flags before (line {first.line}): keep one of the two")
        self._read_flags(name, self._words(name), (*around, name))

    def _read_flags(self, array: str, words: Sequence[Token], around: tuple[str, ...] = ()) -> None:
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
                self._read_array(word.array, around)
            elif word.array:
                self._notice(word.line, f"{array}: ${{{word.array}[@]}} is not set in this script")
        self._finish(array, flag, values)

    def _finish(self, array: str, flag: Token | None, values: Sequence[Token]) -> None:
        if flag is None:
            return
        name, equals, value = flag.text.removeprefix("--").partition("=")
        texts = (*([value] if equals else []), *(word.text for word in values))
        for word in (flag, *values):
            self._defaults(word)
        unread = next((word.unread for word in (flag, *values) if word.unread), None)
        self._script.flags.append(Flag(name, texts, array, flag.line, unread, flag.offset))

    def _notice(self, line: int, text: str) -> None:
        self._script.notices.append(f"{self._label}:{line}: {text}")

    def _problem(self, line: int, text: str) -> None:
        self._script.problems.append(f"{self._label}:{line}: {text}")
