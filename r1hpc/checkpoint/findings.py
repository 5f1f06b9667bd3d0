"""What a verification reads, how, and what it found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from r1hpc.checkpoint.progress import Progress
from r1hpc.checkpoint.workers import Work, run_units

SHOWN = 20
"""Problems that are printed; more of them say nothing new."""

U = TypeVar("U")


@dataclass(frozen=True)
class Scope:
    """How much is read. The structure always is: it costs no payload."""

    hashes: bool = True
    values: bool = True
    sample: int | None = None
    """Compare the values of so many tensors; null: of all."""


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


@dataclass(frozen=True)
class Verification:
    """One run: what to read, by how many workers, and the findings so far."""

    scope: Scope
    workers: int
    say: Callable[[str], None]
    findings: Findings = field(default_factory=Findings)

    def run(self, what: str, units: Sequence[U], size_bytes: int, work: Work[U, list[str]]) -> None:
        """Let workers go over the units, and keep the problems that they return."""
        for problems in run_units(units, work, self.workers, Progress(what, size_bytes, self.say)).results:
            self.findings.problems += problems
