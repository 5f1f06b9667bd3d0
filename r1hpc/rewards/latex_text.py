r"""LaTeX mathematics as plain text: `\frac{1}{2}` to `1/2`, `\sqrt{3}` to `√(3)`, `\pi` to `π`.

The text is what the reference's converter (pylatexenc's latex2text) gives for the LaTeX of answers, with its losses,
because the verdict depends on them: `\frac{x+1}{2}` becomes `x+1/2`, an index of a root is dropped, `\binom{4}{2}`
becomes `42`. Both answer and label pass through it. A macro that is in no table vanishes; its arguments stay.
"""

from __future__ import annotations

import re
import unicodedata

from r1hpc.rewards.latex_symbols import ALPHABETS, CHARACTERS, LIGATURES, MATRICES, SILENT, SYMBOLS

_MACRO = re.compile(r"\\(?:([a-zA-Z]+)\*?\s*|(.)|$)", re.DOTALL)
_PLAIN = re.compile(r"[^\\{}&~`'\-]+")
_ENVIRONMENT = re.compile(r"\s*\{([^{}]*)\}")
_OPTION = re.compile(r"\s*\[[^\]]*\]")
_SPACES = re.compile(r"\s*")


def latex_to_text(latex: str) -> str:
    """The text of LaTeX; braces need not match. Raises RecursionError where they are nested hundreds deep."""
    reader = _Reader(latex)
    parts = []
    while reader.pos < len(latex):
        parts.append(reader.read_group_content())
        reader.pos += 1  # past a closing brace that nothing opened
    return "".join(parts)


class _Reader:
    """A place in a LaTeX text; every read_ method returns plain text and moves on."""

    def __init__(self, latex: str) -> None:
        self._latex = latex
        self.pos = 0

    def read_group_content(self) -> str:
        """Up to the closing brace, which is not consumed, or the end."""
        parts = []
        while self.pos < len(self._latex) and self._latex[self.pos] != "}":
            parts.append(self._read_atom())
        return "".join(parts)

    def _read_atom(self) -> str:
        """A macro with its arguments, a group, or plain characters."""
        if plain := _PLAIN.match(self._latex, self.pos):
            self.pos = plain.end()
            return plain.group()
        for ligature, text in LIGATURES.items():
            if self._latex.startswith(ligature, self.pos):
                self.pos += len(ligature)
                return text
        first = self._latex[self.pos]
        if first == "\\":
            return self._read_macro()
        if first == "{":
            return self._read_braces()
        self.pos += 1
        return {"&": "    ", "~": "\xa0"}.get(first, first)

    def _read_braces(self) -> str:
        self.pos += 1
        content = self.read_group_content()
        self.pos += 1
        return content

    def _read_macro(self) -> str:
        match = _MACRO.match(self._latex, self.pos)
        assert match is not None, "a backslash begins a macro"
        self.pos = match.end()
        name, character = match[1], match[2]
        if name is None:
            return CHARACTERS.get(character or "", "")
        if name == "frac":
            return f"{self._read_argument()}/{self._read_argument()}"
        if name == "sqrt":
            self._skip(_OPTION)
            return f"√({self._read_argument()})"
        if name in ("begin", "end"):
            return self._read_environment(name)
        if name in ALPHABETS:
            return "".join(_in_alphabet(ALPHABETS[name], letter) for letter in self._read_argument())
        for _ in range(SILENT.get(name, 0)):
            self._read_argument()
        return SYMBOLS.get(name, "")

    def _read_argument(self) -> str:
        """One argument: a group, a macro, or a single character."""
        self._skip(_SPACES)
        if self.pos >= len(self._latex) or self._latex[self.pos] == "}":
            return ""
        if self._latex[self.pos] in "{\\":
            return self._read_atom()
        self.pos += 1
        return self._latex[self.pos - 1]

    def _read_environment(self, side: str) -> str:
        r"""The brackets of a matrix; the rows between them are read as other text, ` & ` and `\\` apart."""
        match = _ENVIRONMENT.match(self._latex, self.pos)
        if match is None:
            return ""
        self.pos = match.end()
        if match[1].rstrip("*") not in MATRICES:
            return ""
        return "[ " if side == "begin" else " ]"

    def _skip(self, pattern: re.Pattern[str]) -> None:
        if match := pattern.match(self._latex, self.pos):
            self.pos = match.end()


def _in_alphabet(alphabet: str, letter: str) -> str:
    """A Latin letter in another alphabet of Unicode's; some of those letters have names without MATHEMATICAL."""
    if not (letter.isascii() and letter.isalpha()):
        return letter
    name = f"{alphabet} {'CAPITAL' if letter.isupper() else 'SMALL'} {letter.upper()}"
    for full_name in (f"MATHEMATICAL {name}", name):
        try:
            return unicodedata.lookup(full_name)
        except KeyError:
            continue
    return letter
