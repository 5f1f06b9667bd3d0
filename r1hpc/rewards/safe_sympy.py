"""Sympy expressions from text that nobody has checked.

sympy's `parse_expr` evaluates Python that it made from the text. Here that Python is first read as a tree, in which
only arithmetic on numbers, symbols and a few named functions may occur, and no number may grow beyond bounds. What is
refused raises UnsafeExpression; what is merely slow is for the time limit of the process.
"""

from __future__ import annotations

import ast
import math
from decimal import Decimal, InvalidOperation
from types import CodeType
from typing import Any

import sympy
from sympy.parsing.sympy_parser import (
    TRANS,
    implicit_multiplication_application,
    standard_transformations,
    stringify_expr,
)

MAX_CHARACTERS = 1_000
MAX_DEPTH = 50
MAX_EXPONENT = 10_000
MAX_DIGITS = 20_000
MAX_FACTORIAL = 1_000

_TRANSFORMATIONS: tuple[TRANS, ...] = (*standard_transformations, implicit_multiplication_application)
_MADE_FROM_LITERALS = ("Integer", "Float", "Rational", "Number", "Symbol", "Function")
_FUNCTIONS = ("sqrt", "frac", "factorial", "factorial2", "csc", "ff", "im", "li", "ln", "re", "rf")
"""Those that a name of two different letters can reach (sqrt and frac count as none), and `!`."""
_CONSTANTS = ("pi", "oo", "zoo", "nan", "I")
_NAMES = {name: getattr(sympy, name) for name in (*_MADE_FROM_LITERALS, *_FUNCTIONS, *_CONSTANTS)}
_FACTORIALS = ("factorial", "factorial2", "ff", "rf")


_POINT = (sympy.Float("0.7320508"), sympy.Float("1.6180339"))


class UnsafeExpression(ValueError):
    """Text that is no arithmetic expression, or one whose value would be too large to write down."""


def parse_expression(text: str) -> sympy.Basic:
    """The expression that the text means to sympy; `^` is a power, `2x` a product.

    Raises UnsafeExpression, or any of many errors of Python and sympy for text that is no expression.
    """
    if len(text) > MAX_CHARACTERS:
        raise UnsafeExpression(f"{len(text)} characters, more than {MAX_CHARACTERS}")
    if text.count("(") > MAX_DEPTH or text.count("[") > MAX_DEPTH:
        raise UnsafeExpression(f"more than {MAX_DEPTH} brackets")
    # In parentheses, or a comment sign would hide what follows it.
    code = stringify_expr(f"({text})".replace("^", "**"), {}, dict(_NAMES), _TRANSFORMATIONS)
    value = eval(_checked(code), {"__builtins__": {}, **_NAMES}, {})
    if not isinstance(value, sympy.Basic):
        raise UnsafeExpression(f"a {type(value).__name__}, not an expression")
    return value


def _checked(code: str) -> CodeType:
    tree = ast.parse(code.strip(), mode="eval")
    _magnitude(tree.body)
    return compile(tree, "<answer>", "eval")


def _magnitude(node: ast.expr) -> float:
    """Upper bound of log10 of the value, at least 0; of symbols it knows nothing and takes them for 1.

    Raises UnsafeExpression for all that is not allowed.
    """
    match node:
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _magnitude_of_power(_magnitude(left), _magnitude(right))
        case ast.BinOp(left=left, op=ast.Mult() | ast.Div() | ast.FloorDiv(), right=right):
            return _bounded(_magnitude(left) + _magnitude(right))
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub(), right=right):
            return _bounded(max(_magnitude(left), _magnitude(right)) + math.log10(2))
        case ast.UnaryOp(op=ast.UAdd() | ast.USub(), operand=operand):
            return _magnitude(operand)
        case ast.Name(id=name) if name in _NAMES:
            return 0.0
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _MADE_FROM_LITERALS:
            return max(map(_magnitude_of_literal, arguments), default=0.0)
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _magnitude_of_call(name, max(map(_magnitude, arguments), default=0.0))
        case ast.Call(func=ast.Call() as function, args=arguments, keywords=[]):
            # Function('f')(x): a function that has no meaning but its name.
            return max(map(_magnitude, (function, *arguments)))
    raise UnsafeExpression(f"not arithmetic: {type(node).__name__}")


def _magnitude_of_power(base: float, exponent: float) -> float:
    if exponent > math.log10(MAX_EXPONENT):
        raise UnsafeExpression(f"an exponent of about 10^{exponent:.0f}, more than {MAX_EXPONENT}")
    return _bounded(base * 10**exponent)


def _magnitude_of_literal(node: ast.expr) -> float:
    """Of the argument in `Integer(5)`, `Symbol('x')`; a repeated decimal is `Rational(Integer(1), Integer(3))`."""
    match node:
        case ast.Constant(value=int() as value):
            return _bounded(math.log10(value) if value > 1 else 0.0)
        case ast.Constant(value=str() as value):
            return _magnitude_of_decimal(value) if value[:1] in "0123456789." else 0.0
        case ast.Call():
            return _magnitude(node)
    raise UnsafeExpression("a name or number made from something else than itself")


def _magnitude_of_decimal(digits: str) -> float:
    try:
        exponent = Decimal(digits.replace("_", "")).adjusted()
    except InvalidOperation:
        raise UnsafeExpression(f"not a decimal number: {digits[:20]}") from None
    return _bounded(abs(exponent) + 1.0)  # the inverse of a tiny number is a huge one


def _magnitude_of_call(name: str, argument: float) -> float:
    if name not in _FACTORIALS:
        return argument
    if argument > math.log10(MAX_FACTORIAL):
        raise UnsafeExpression(f"a factorial of about 10^{argument:.0f}, more than {MAX_FACTORIAL}")
    return MAX_FACTORIAL * math.log10(MAX_FACTORIAL)


def _bounded(magnitude: float) -> float:
    if magnitude > MAX_DIGITS:
        raise UnsafeExpression(f"a number of more than {MAX_DIGITS} digits")
    return magnitude


def is_zero_when_simplified(expression: sympy.Basic) -> bool:
    """Whether sympy simplifies it to 0; may take for ever.

    What is not 0 at one point cannot simplify to 0: that decides most wrong answers a hundred times faster.
    """
    if _is_nonzero_somewhere(expression):
        return False
    simplified: Any = sympy.simplify(expression)
    return bool(simplified == 0)


def _is_nonzero_somewhere(expression: sympy.Basic) -> bool:
    """Whether it is clearly not 0 at a point without special properties; False also where that has no value."""
    point = {symbol: _POINT[place % 2] for place, symbol in enumerate(sorted(expression.free_symbols, key=str))}
    try:
        return 1e-3 < abs(complex(expression.subs(point).evalf())) < 1e6
    except (TypeError, ValueError, OverflowError):
        return False
