r"""The textual normal form of the MATH data set: two answers are the same if their forms are equal.

The rules and their order are those of the `is_equiv` of Hendrycks et al., arXiv:2103.03874, as deepscaler applies them.
"""

from __future__ import annotations

import re

_TEXT = re.compile(r"\\text\{(.+)\}$")
_WHOLE_OVER_WHOLE = re.compile(r"(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)")
# In this order: a later rule sees what an earlier one left.
_BEFORE_UNITS = (
    ("\n", ""),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\$", ""),
)
_AFTER_UNITS = (("\\%", ""), (" .", " 0."), ("{.", "{0."))


class _NoForm(ValueError):
    """An answer that a rule cannot read; it then stands for itself."""


def mathd_form(answer: str) -> str:
    """The normal form; an answer that some rule cannot read (a `\\frac` at its end, two units) is left as it is."""
    bare = unwrap_text(answer.strip()).strip()
    try:
        return _normal(bare)
    except _NoForm:
        return bare


def unwrap_text(answer: str) -> str:
    r"""Without a `\text{}` around the whole."""
    match = _TEXT.match(answer)
    return match[1] if match else answer


def _normal(answer: str) -> str:
    answer = _replace(answer, _BEFORE_UNITS)
    answer = _without_unit(answer)
    answer = _replace(answer, _AFTER_UNITS)
    if answer.startswith("."):
        answer = "0" + answer
    answer = _without_name(answer)
    answer = _braced_roots(answer).replace(" ", "")
    answer = _braced_fractions(answer)
    if answer == "0.5":
        return r"\frac{1}{2}"
    quotient = _WHOLE_OVER_WHOLE.fullmatch(answer)
    return rf"\frac{{{quotient[1]}}}{{{quotient[2]}}}" if quotient else answer


def _replace(answer: str, rules: tuple[tuple[str, str], ...]) -> str:
    for old, new in rules:
        answer = answer.replace(old, new)
    return answer


def _without_unit(answer: str) -> str:
    r"""Drop `\text{ cm}` and all after it: a text that begins with a space is a unit."""
    value, *units = answer.split(r"\text{ ")
    if len(units) > 1:
        raise _NoForm
    return value


def _without_name(answer: str) -> str:
    """Drop `k=`: one equals sign with at most two characters before it."""
    name, *values = answer.split("=")
    return values[0] if len(values) == 1 and len(name) <= 2 else answer


def _braced_roots(answer: str) -> str:
    r"""`\sqrt3` to `\sqrt{3}`."""
    head, *tails = answer.split(r"\sqrt")
    if "" in tails:
        raise _NoForm
    return head + "".join(r"\sqrt" + (tail if tail.startswith("{") else f"{{{tail[0]}}}{tail[1:]}") for tail in tails)


def _braced_fractions(answer: str) -> str:
    r"""`\frac12` and `\frac1{2}` to `\frac{1}{2}`; `\frac{1}2` stays, as in the reference."""
    head, *tails = answer.split(r"\frac")
    parts = [head]
    for tail in tails:
        if not tail:
            raise _NoForm
        if tail.startswith("{"):
            parts.append(tail)
        elif len(tail) == 1:
            return answer
        else:
            below = tail[1] if tail[1] == "{" else f"{{{tail[1]}}}"
            parts.append(f"{{{tail[0]}}}{below}{tail[2:]}")
    return r"\frac".join(parts)
