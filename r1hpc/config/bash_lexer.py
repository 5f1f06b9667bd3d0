"""Splits a bash script into words and operators; runs nothing and expands nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

_OPERATORS = frozenset("();&|<>")
_PARAMETER = re.compile(r"\$(?P<name>[A-Za-z_]\w*)|\$\{(?P<braced>[A-Za-z_]\w*)\}")
_DEFAULT = re.compile(r"\$\{(?P<name>[A-Za-z_]\w*):?[-=](?P<default>[^${}\"'`]*)\}")
_ARRAY = re.compile(r"\$\{(?P<name>[A-Za-z_]\w*)\[[@*]\]\}")
_HEREDOC = re.compile(r"<<-?\s*(?P<quote>['\"]?)(?P<word>\w+)(?P=quote)")


@dataclass
class Token:
    """A word, an operator, the end of a line, or something that opens and never closes."""

    kind: Literal["word", "operator", "newline", "unclosed"]
    line: int
    text: str = ""
    """The word with its quotes removed and every variable written ${NAME}; a literal ${ is written $${.
    Of what is unclosed: the characters that open it."""
    offset: int = 0
    """Where it starts, in characters: what stands before what."""
    array: str | None = None
    """The array that the whole word stands for: "${CKPT_ARGS[@]}"."""
    defaults: dict[str, str] = field(default_factory=dict)
    """Values for ${NAME:-value}."""
    unread: str | None = None
    """A part whose value only running it would tell: $(...), `...`, $1, ${NAME%.sh}."""


def tokens(script: str) -> Iterator[Token]:
    """The tokens of `script`; comments, line continuations and here-documents are left out."""
    return _Lexer(script).tokens()


class _Lexer:
    def __init__(self, script: str) -> None:
        self._text = script
        self._at = 0
        self._line = 1
        self._heredocs: list[tuple[str, int]] = []
        self._unclosed: list[Token] = []

    def tokens(self) -> Iterator[Token]:
        while self._at < len(self._text):
            here = self._text[self._at]
            if here == "\n":
                yield Token("newline", self._line, offset=self._at)
                self._advance(1)
                self._skip_heredocs()
            elif self._text.startswith("\\\n", self._at):
                self._advance(2)
            elif here.isspace():
                self._advance(1)
            elif here == "#":
                self._at = _find(self._text, "\n", self._at)
            elif here in _OPERATORS:
                yield self._operator(here)
            else:
                yield self._word()
            if self._unclosed:  # the first of them has swallowed the others
                yield min(self._unclosed, key=lambda token: token.line)
                self._unclosed.clear()

    def _operator(self, here: str) -> Token:
        token = Token("operator", self._line, here, offset=self._at)
        heredoc = _HEREDOC.match(self._text, self._at)
        if self._text.startswith("<<<", self._at):
            self._advance(3)
        elif heredoc:
            self._heredocs.append((heredoc["word"], self._line))
            self._advance(len(heredoc[0]))
        else:
            self._advance(1)
        return token

    def _word(self) -> Token:
        token = Token("word", self._line, offset=self._at)
        quoted = False
        opened, start = self._line, self._at
        while self._at < len(self._text):
            here = self._text[self._at]
            if here == '"':
                quoted, opened = not quoted, self._line
                self._advance(1)
            elif quoted or not (here.isspace() or here in _OPERATORS):
                self._piece(token, here, quoted)
            else:
                break
        whole = _ARRAY.fullmatch(self._text[start : self._at].strip('"'))
        if whole:
            token.array, token.unread = whole["name"], None
        if quoted:
            self._never_closed('"', opened)
        return token

    def _piece(self, token: Token, here: str, quoted: bool) -> None:
        """Take the next piece of a word: an escape, a single-quoted part, an expansion or one character."""
        if here == "\\":
            self._escape(token, quoted)
        elif here == "'" and not quoted:
            end = _find(self._text, "'", self._at + 1)
            if end == len(self._text):
                self._never_closed("'", self._line)
            token.text += self._text[self._at + 1 : end].replace("${", "$${")
            self._advance(end + 1 - self._at)
        elif here in "$`":
            self._expansion(token, here)
        else:
            token.text += here
            self._advance(1)

    def _escape(self, token: Token, quoted: bool) -> None:
        following = self._text[self._at + 1 : self._at + 2]
        keeps_backslash = quoted and following not in ("$", "`", '"', "\\", "\n")
        if following != "\n":
            token.text += "\\" + following if keeps_backslash else following
        if following == "$" and self._text.startswith("{", self._at + 2):
            token.text += "$"
        self._advance(2)

    def _expansion(self, token: Token, here: str) -> None:
        parameter = _PARAMETER.match(self._text, self._at)
        default = _DEFAULT.match(self._text, self._at)
        if parameter:
            token.text += f"${{{parameter['name'] or parameter['braced']}}}"
            self._advance(len(parameter[0]))
        elif default:
            token.text += f"${{{default['name']}}}"
            token.defaults[default["name"]] = default["default"]
            self._advance(len(default[0]))
        else:
            end = _expansion_end(self._text, self._at)
            if end is None:
                self._never_closed(self._text[self._at : self._at + (1 if here == "`" else 2)], self._line)
                end = len(self._text)
            part = self._text[self._at : end]
            if part == "$":
                token.text += part
            else:
                token.unread = token.unread or part
            self._advance(end - self._at)

    def _skip_heredocs(self) -> None:
        for word, opened in self._heredocs:
            closed = False
            while not closed and self._at < len(self._text):
                end = _find(self._text, "\n", self._at)
                line = self._text[self._at : end]
                self._advance(end + 1 - self._at)
                closed = line.strip() == word
            if not closed:
                self._never_closed(f"<<{word}", opened)
        self._heredocs.clear()

    def _never_closed(self, opening: str, line: int) -> None:
        self._unclosed.append(Token("unclosed", line, opening, offset=self._at))

    def _advance(self, count: int) -> None:
        self._line += self._text.count("\n", self._at, self._at + count)
        self._at += count


def _expansion_end(text: str, at: int) -> int | None:
    """Where the expansion that starts at `at` ends; None when it never does."""
    if text[at] == "`":
        return text.find("`", at + 1) + 1 or None
    opening = text[at + 1 : at + 2]
    if opening not in ("(", "{"):
        return at + 2 if opening and opening in "0123456789@*#?$!-" else at + 1
    return _bracket_end(text, at + 1)


def _bracket_end(text: str, at: int) -> int | None:
    """Where the bracket at `at` ends; those inside quotes and escapes are not counted."""
    opening = text[at]
    closing = ")" if opening == "(" else "}"
    end: int | None = at + 1
    while end is not None and end < len(text):
        here = text[end]
        if here == closing:
            return end + 1
        if here == opening:
            end = _bracket_end(text, end)
        elif here == "'" and opening == "(":
            end = text.find("'", end + 1) + 1 or None
        elif here == '"':
            end = _quote_end(text, end)
        else:
            end += 2 if here == "\\" else 1
    return None


def _quote_end(text: str, at: int) -> int | None:
    """Where the double quote at `at` ends; an expansion in it may hold quotes of its own."""
    end: int | None = at + 1
    while end is not None and end < len(text):
        if text[end] == '"':
            return end + 1
        if text[end] in "$`":
            end = _expansion_end(text, end)
        else:
            end += 2 if text[end] == "\\" else 1
    return None


def _find(text: str, what: str, start: int) -> int:
    found = text.find(what, start)
    return len(text) if found < 0 else found
