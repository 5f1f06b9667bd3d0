"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass, field

SHOWN = 20
"""Problems that are printed; more of them say nothing new."""


@dataclass
class Findings:
    """Gathered by one check after the other."""

    checked: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    """What could not be checked, and why."""
    problems: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def lines(self) -> list[str]:
        """The report."""
        shown = [f"problem: {problem}" for problem in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            shown.append(f"and {len(self.problems) - SHOWN} more")
        count = len(self.problems)
        verdict = "everything that was checked is right" if self.good else f"{count} problem{'s' if count > 1 else ''}"
        return [
            *(f"checked: {text}" for text in self.checked),
            *(f"not checked: {text}" for text in self.unchecked),
            *shown,
            verdict,
        ]
