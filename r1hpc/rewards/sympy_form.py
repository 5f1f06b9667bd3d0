"""The normal form in which answers are split, compared and given to sympy.

The rules and their order are the reference's (PRM800K's grader, arXiv:2305.20050, as deepscaler applies it).
"""

from __future__ import annotations

import re

from r1hpc.rewards.latex_text import latex_to_text
from r1hpc.rewards.mathd import unwrap_text

_INTEGER_TOLERANCE = 1e-7
_REPLACED = (
    ("\\%", "%"),
    ("\\$", "$"),
    ("$", ""),
    ("%", ""),
    (" or ", " , "),
    (" and ", " , "),
    ("million", "*10^6"),
    ("billion", "*10^9"),
    ("trillion", "*10^12"),
)
_UNIT_NAMES = (
    *("degree", "cm", "centimeter", "meter", "mile", "second", "minute", "hour", "day", "week", "month", "year"),
    *("foot", "feet", "inch", "yard"),
)
# One after the other, as a removal may bring the letters of the next one together.
_UNITS = tuple((name, re.compile(rf"{name}(es)?s? *(\^[0-9]+)?")) for name in _UNIT_NAMES)
_DEGREES = re.compile(r"\^ *\\circ")
_SPACED_COMMA = re.compile(r",\\! *")
_THOUSANDS = re.compile(r"(\d),(\d\d\d)($|\D)")
_MINUS = re.compile(r"- *")
_MIXED_NUMBER = re.compile(r"([0-9]) +([0-9])")
_GLYPHS = str.maketrans({"√": "sqrt", "π": "pi", "∞": "inf", "∪": "U", "·": "*", "×": "*"})  # noqa: RUF001


def sympy_form(answer: str) -> str:
    """The normal form: without units, `$`, `%` and spaces; LaTeX as text; `7 3/4` as `7+3/4`; in lower case."""
    answer = unwrap_text(answer)
    for old, new in _REPLACED:
        answer = answer.replace(old, new)
    for name, unit in _UNITS:
        if name in answer:
            answer = unit.sub("", answer)
    answer = _DEGREES.sub("", answer)
    if answer.startswith("{") and answer.endswith("}"):
        answer = answer[1:-1]
    answer = _whole_number(_SPACED_COMMA.sub("", answer))
    if "\\" in answer:
        answer = _plain(answer)
    answer = _MINUS.sub("-", answer)
    answer = _MIXED_NUMBER.sub(r"\1+\2", answer).replace(" ", "")
    answer = answer.replace("{", "").replace("}", "").lower()
    return str(int(float(answer.replace(",", "")))) if is_integer(answer) else answer


def without_thousands_commas(form: str) -> str:
    """`12,345` to `12345`. Of four groups and more some commas stay, as in the reference, which skips neighbours."""
    while (fewer := _THOUSANDS.sub(r"\1\2\3", form)) != form:
        form = fewer
    return form


def is_integer(form: str) -> bool:
    """Whether it reads as a number that is whole within 1e-7: `12,345`, `3.0`, `1e3`."""
    return _is_whole(without_thousands_commas(form))


def _is_whole(number: str) -> bool:
    try:
        value = float(number)
        return abs(value - round(value)) <= _INTEGER_TOLERANCE
    except (ValueError, OverflowError):  # not a number; inf or nan
        return False


def _whole_number(answer: str) -> str:
    """`3.0` to `3`; everything else as it is."""
    return str(round(float(answer))) if _is_whole(answer) else answer


def _plain(latex: str) -> str:
    latex = latex.replace(r"\tfrac", r"\frac").replace(r"\dfrac", r"\frac")
    try:
        # The space keeps a mixed number apart: 3\frac{1}{2} is 3 1/2, not 31/2.
        return latex_to_text(latex.replace(r"\frac", r" \frac")).translate(_GLYPHS).strip()
    except RecursionError:
        return latex
