"""Whether two answers mean the same, element by element, by sympy where text does not decide."""

from __future__ import annotations

import re

from r1hpc.rewards.sympy_form import is_integer, sympy_form, without_thousands_commas

_BRACKETS = "()[]"
_PLAIN_FRACTION = re.compile(r"-?[0-9]+.?/0*[1-9][0-9]*.?$")
_PLAIN_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_NOT_EVALUATED = re.compile(r"\^[{(]|\^[0-9]+\^|\^[0-9][0-9]")
"""Powers that may be huge: `^{`, `^(`, a power of a power, an exponent of two digits."""
_MAX_LETTERS = 2


def same_answer(answer: str, label: str) -> bool:
    """Whether the answer is the label's value in an acceptable form; may take for ever: call it where it can be killed.

    A tuple or interval must have the label's brackets and length. Two plain fractions must be written alike: unreduced
    is wrong. If only one is an integer they differ. Everything else is the same if sympy simplifies the difference to
    0, but is not tried with more than two letters or with large powers.
    """
    given, expected = sympy_form(answer), sympy_form(label)
    if given == expected:
        return True
    if not given:
        return False
    given_elements, expected_elements = _elements(given), _elements(expected)
    if len(given_elements) != len(expected_elements):
        return False
    if len(expected_elements) > 1 and (expected[0], expected[-1]) != (given[0], given[-1]):
        return False
    pairs = zip(given_elements, expected_elements, strict=True)
    return bool(expected_elements) and all(_same_element(*pair) for pair in pairs)


def _elements(form: str) -> list[str]:
    """The elements of a tuple or interval; an expression with other brackets inside is one element."""
    form = without_thousands_commas(form)
    if not form:
        return []
    inner = form[1:-1]
    bracketed = len(form) > 2 and form[0] in _BRACKETS and form[-1] in _BRACKETS
    if bracketed and not any(bracket in inner for bracket in _BRACKETS):
        return [element.strip() for element in inner.split(",")]
    return [form]


def _same_element(given: str, expected: str) -> bool:
    if _PLAIN_FRACTION.match(given) and _PLAIN_FRACTION.match(expected):
        return given == expected
    if is_integer(given) != is_integer(expected):
        return False
    if _PLAIN_INTEGER.fullmatch(given) and _PLAIN_INTEGER.fullmatch(expected):
        return given == expected  # what sympy would say, a thousand times faster
    return _may_be_evaluated(f"({expected})-({given})") and _difference_is_zero(given, expected)


def _may_be_evaluated(difference: str) -> bool:
    unknown = difference.replace("sqrt", "").replace("frac", "")
    letters = {character for character in unknown if character.isalpha()}
    return len(letters) <= _MAX_LETTERS and not _NOT_EVALUATED.search(difference)


def _difference_is_zero(given: str, expected: str) -> bool:
    from r1hpc.rewards.safe_sympy import is_zero_when_simplified, parse_expression  # 1 s to import

    try:
        return is_zero_when_simplified(parse_expression(expected) - parse_expression(given))
    except MemoryError:
        raise
    except Exception:
        # sympy raises all kinds for text that is no expression: then the two are not shown to be equal.
        return False
