"""What a rehearsal has learned: the accuracy on held-out prompts, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from r1hpc.metrics.record import Line

RISE = 0.2
"""A rehearsal that gains less than this on its held-out prompts has something wrong with it: 0.38 is usual."""
_SUFFIX = "/pass@1"


@dataclass(frozen=True)
class Lesson:
    """One held-out set."""

    name: str
    before: float
    """Share of right answers before the first iteration."""
    after: float
    """And after the last."""

    @classmethod
    def of(cls, lines: Sequence[Line]) -> list[Lesson]:
        """Of a complete run; none for sets that were not evaluated at both ends."""
        if not lines:
            return []
        names = [key.split("/")[1] for key in lines[0] if key.startswith("eval/") and key.endswith(_SUFFIX)]
        ends = {name: lines[-1].get(f"final_eval/{name}{_SUFFIX}") for name in names}
        begin = lines[0]
        return [cls(name, begin[f"eval/{name}{_SUFFIX}"], after) for name, after in ends.items() if after is not None]

    @property
    def is_too_small(self) -> bool:
        """Whether the rehearsal failed at what it is for."""
        return self.after - self.before < RISE

    def __str__(self) -> str:
        verdict = f", which is less than {RISE:.0%}: something is wrong" if self.is_too_small else ""
        return f"{self.name}: {self.before:.1%} right before, {self.after:.1%} after{verdict}"
