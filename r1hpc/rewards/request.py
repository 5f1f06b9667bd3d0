"""What is asked of the rewards and what they answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from r1hpc.errors import R1hpcError

Outcome = Literal["graded", "timeout", "memory", "crashed", "error"]
"""How a reward came about. All but `graded` have value 0: past the time limit, past the memory limit, the process
that graded it died, the reward function raised."""


class RewardError(R1hpcError):
    """A reward that cannot be computed as configured: no such kind, no label, a function that does not load."""


class RewardLoadError(RewardError):
    """A reward whose own code does not load: it will not next time either."""


@dataclass(frozen=True)
class RewardRequest:
    """One response to be graded."""

    response: str
    label: str | None
    """What built-in rewards compare with."""
    kind: str
    """A name of `kinds.BUILT_IN`, or the import path of a custom function that the pool was made with."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Of the prompt, as JSON has it. Its `rm_type` takes the place of a built-in `kind`, never of a custom function."""


@dataclass(frozen=True)
class Score:
    """The reward of one response."""

    value: float
    outcome: Outcome = "graded"
    detail: str = ""
    """Why, if not graded: the limit, the signal, the traceback's last lines."""
