"""The built-in rewards by name."""

from __future__ import annotations

from collections.abc import Callable

from r1hpc.rewards.boxed import boxed_answer
from r1hpc.rewards.deepscaler import deepscaler, grade_answer
from r1hpc.rewards.request import RewardError

Grader = Callable[[str, str], float]

BUILT_IN = ("deepscaler", "math_verify", "exact", "boxed_deepscaler", "boxed_math_verify", "boxed_exact")
r"""boxed_ takes the content of the last `\boxed{}` of the whole response first; without one the reward is 0.
boxed_deepscaler then only compares: its rules about thinking and boxes are for finding the answer, which is found."""


def is_custom(kind: str) -> bool:
    """Whether it is an import path rather than a name."""
    return "." in kind


def grader_of(kind: str) -> Grader:
    """The function of a built-in kind, imported on demand: Math-Verify and sympy take seconds."""
    if kind.startswith("boxed_"):
        return _of_boxed(grade_answer if kind == "boxed_deepscaler" else grader_of(kind.removeprefix("boxed_")))
    if kind == "deepscaler":
        return deepscaler
    if kind == "math_verify":
        from r1hpc.rewards.math_verification import math_verify

        return math_verify
    if kind == "exact":
        return exact
    raise RewardError(f"no reward is called {kind!r}; there are {', '.join(BUILT_IN)}, and custom_rm_path for your own")


def exact(response: str, label: str) -> float:
    """1.0 if what follows the last `</think>`, or the whole response, is the label but for space around it."""
    return float(response.rpartition("</think>")[2].strip() == label.strip())


def _of_boxed(grade: Grader) -> Grader:
    def grade_boxed(response: str, label: str) -> float:
        answer = boxed_answer(response)
        return 0.0 if answer is None else grade(answer, label)

    return grade_boxed
