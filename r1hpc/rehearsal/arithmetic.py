r"""The task of the rehearsal: sums and differences of two-digit numbers, asked and answered in R1's form.

An answer either works the digits out, the units first, or is a guess with empty thinking, as R1's are at times:

    3+8=11,2+4+1=7\n</think>\n\boxed{71}        \n</think>\n\boxed{61}

Loads no torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from r1hpc.publish import publish_text

NUM_HELD_OUT = 96
NUM_TRAIN = 4096
LARGEST_RESPONSE = 24
"""Tokens, with the end of sentence: 9+9=18,9+9+1=19 and \\boxed{198}."""
WORDS = ("What is ", "\\boxed{")
"""Texts that are one token each, besides those of R1's form."""

_SLIPS = (-11, -10, -9, -1, 1, 9, 10, 11)
"""How far a wrong guess is off: a digit, or both, by one."""


@dataclass(frozen=True)
class Problem:
    """A sum, or a difference that is not negative."""

    first: int
    operator: str
    second: int

    @property
    def prompt(self) -> str:
        return f"What is {self.first}{self.operator}{self.second}?"

    @property
    def answer(self) -> int:
        return self.first + self.second if self.operator == "+" else self.first - self.second

    @property
    def label(self) -> str:
        return str(self.answer)

    @property
    def working(self) -> str:
        """The digits one after another, with what is carried or borrowed."""
        (tens, units), (other_tens, other_units) = divmod(self.first, 10), divmod(self.second, 10)
        if self.operator == "+":
            low = units + other_units
            carried = "+1" if low >= 10 else ""
            return f"{units}+{other_units}={low},{tens}+{other_tens}{carried}={tens + other_tens + low // 10}"
        borrowed = units < other_units
        units, tens = units + 10 * borrowed, tens - borrowed
        return f"{units}-{other_units}={units - other_units},{tens}-{other_tens}={tens - other_tens}"

    @property
    def worked_response(self) -> str:
        """The response that thinks first; it is right."""
        return response(self.working, self.answer)

    def guess(self, slip: int) -> str:
        """The response that does not think, off by `slip`."""
        return response("", self.answer + slip)

    @property
    def slips(self) -> list[int]:
        """By how much a guess may be wrong; none of them is negative."""
        return [slip for slip in _SLIPS if self.answer + slip >= 0]


def response(thinking: str, answer: int) -> str:
    """What follows the template's `<think>` and its new line."""
    return f"{thinking}\n</think>\n\\boxed{{{answer}}}"


def problems() -> list[Problem]:
    """All of them, in an order that is random and always the same."""
    numbers = range(10, 100)
    found = [Problem(first, "+", second) for first in numbers for second in numbers]
    found += [Problem(first, "-", second) for first in numbers for second in numbers if first >= second]
    # Not random.shuffle: what it draws from a seed is Python's to change.
    return sorted(found, key=lambda problem: hashlib.sha256(problem.prompt.encode()).digest())


def held_out_problems() -> list[Problem]:
    """Those that nothing is ever trained on."""
    return problems()[:NUM_HELD_OUT]


def taught_problems() -> list[Problem]:
    """All others."""
    return problems()[NUM_HELD_OUT:]


def train_problems() -> list[Problem]:
    """Those of the taught ones that the rehearsal's rollouts ask."""
    return taught_problems()[:NUM_TRAIN]


def write_prompts(train: Path, *held_out: Path) -> None:
    """Write the prompts as JSON lines with the keys `prompt` and `label`, the same bytes every time.

    A file that is there is left as it is.
    """
    for file, asked in ((train, train_problems()), *((file, held_out_problems()) for file in held_out)):
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            publish_text(file, _json_lines(asked))


def _json_lines(asked: Iterable[Problem]) -> str:
    return "".join(json.dumps({"prompt": problem.prompt, "label": problem.label}) + "\n" for problem in asked)
