r"""The deepscaler reward: 1 for a right answer in \boxed{} after the thinking, else 0."""

from __future__ import annotations

from functools import lru_cache

from r1hpc.rewards.boxed import boxed_answer
from r1hpc.rewards.mathd import mathd_form
from r1hpc.rewards.sympy_grader import same_answer

_END_OF_THINKING = "</think>"
_RESPONSE = "###Response"


def deepscaler(response: str, label: str | float) -> float:
    r"""1.0 if the last `\boxed{}` after the thinking is the label, else 0.0; no reward for form, no penalty for length.

    A response that never ends its thinking has no answer. A label may itself hold a `\boxed{}`; "" matches nothing.
    May take for ever on a hostile answer: call it through the RewardPool.
    """
    solution = solution_of(response)
    answer = None if solution is None else boxed_answer(solution)
    return 0.0 if answer is None else grade_answer(answer, label)


def grade_answer(answer: str, label: str | float) -> float:
    """1.0 if an answer, already extracted, is the label by either grader."""
    expected = _expected(str(label))
    if expected is None:
        return 0.0
    return float(_is_correct(answer, expected))


def solution_of(response: str) -> str | None:
    """What follows the last `</think>`; without one, what follows `###Response` up to the next such; else None."""
    _, found, solution = response.rpartition(_END_OF_THINKING)
    if found:
        return solution
    parts = response.split(_RESPONSE, 2)
    return parts[1] if len(parts) > 1 else None


def _expected(label: str) -> str | None:
    if not label:
        return None
    return boxed_answer(label) if r"\boxed" in label else label


@lru_cache(maxsize=4096)  # the samples of a group answer the same question, often alike
def _is_correct(answer: str, label: str) -> bool:
    return mathd_form(answer) == mathd_form(label) or same_answer(answer, label)
