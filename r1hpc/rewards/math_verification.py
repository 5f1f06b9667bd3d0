"""The math_verify reward: the package Math-Verify decides whether the answer means the label."""

from __future__ import annotations

import logging

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

# It warns once in every process that its own time limit is off. That limit is a signal; ours kills the process.
logging.getLogger("math_verify.parser").setLevel(logging.ERROR)
logging.getLogger("math_verify.grader").setLevel(logging.ERROR)


def math_verify(response: str, label: str) -> float:
    """1.0 if what Math-Verify extracts from the response is equal to the label, read as LaTeX, else 0.0.

    Only what follows the last `</think>` counts, the whole response if there is none. May take for ever.
    """
    solution = response.rpartition("</think>")[2]
    expected = parse(f"\\boxed{{{label}}}", (LatexExtractionConfig(),), parsing_timeout=None)
    given = parse(solution, (LatexExtractionConfig(), ExprExtractionConfig()), parsing_timeout=None)
    return float(verify(expected, given, timeout_seconds=None))
