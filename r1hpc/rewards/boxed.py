r"""The answer that a solution puts into \boxed{}."""

from __future__ import annotations

import re

_BRACE = re.compile(r"[{}]")
_OPENING = r"\boxed{"


def boxed_answer(text: str) -> str | None:
    r"""Content of the last `\boxed{...}`, braces matched; None if the last `\boxed` is not such.

    As in the reference, only the last one counts: `\boxed 5`, `\boxed {5}` and an unclosed brace give None even where
    an earlier `\boxed{}` is well-formed; so does `\fbox{5}`.
    """
    begin = text.rfind(r"\boxed")
    if begin < 0 or not text.startswith(_OPENING, begin):
        return None
    depth = 0
    for brace in _BRACE.finditer(text, begin):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            return text[begin + len(_OPENING) : brace.start()]
    return None
