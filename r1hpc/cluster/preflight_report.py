"""The preflight's report: preflight.json for the requeue decision, a table for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from r1hpc import exit_codes
from r1hpc.cluster.nodeset import fold
from r1hpc.cluster.preflight import LASTING, Check, Finding


@dataclass(frozen=True)
class Report:
    """The verdict over all nodes of an attempt."""

    nodes: tuple[str, ...]
    """Every node of the allocation, in its order."""
    findings: tuple[Finding, ...]
    used: tuple[str, ...]
    """The hosts of the run in hostfile order; empty when there are too few good ones."""
    wanted: int
    """hosts.num_nodes"""
    elapsed_s: float
    problem: str | None = None
    """What is wrong with the nodes together."""

    @property
    def passed(self) -> bool:
        """Whether the run may start."""
        return len(self.used) == self.wanted and self.problem is None

    @property
    def everywhere(self) -> tuple[Check, ...]:
        """What more than half of the nodes lack, and at least two: a matter of the site or the configuration.

        Of the nodes that report, for who does not cannot be looked at.
        """
        silent = self._found_by(Check.REPORT)
        common = []
        for check in Check:
            found, asked = self._found_by(check), len(self.nodes)
            if check is not Check.REPORT:
                asked -= len(silent)
            if len(found) >= 2 and len(found) > asked / 2:
                common.append(check)
        return tuple(common)

    @property
    def bad_nodes(self) -> tuple[str, ...]:
        """Nodes to blame: those with a fault of their own; where there are none, those that do not report.

        Never both: the first are excluded at once, the others only when they are blamed again.
        """
        return self._unfit or self._silent

    @property
    def problems(self) -> tuple[str, ...]:
        """What keeps the run from starting and is no single node's fault, in words."""
        if self.passed:
            return ()
        common = [
            f"{check}: the same is wrong on {len(self._found_by(check))} of {len(self.nodes)} nodes, so it is a matter "
            "of the site or the configuration, and no node is to blame"
            for check in self.everywhere
        ]
        return tuple(common if self.problem is None else [self.problem, *common])

    @property
    def exit_code(self) -> int:
        """By which the requeue decision excludes bad nodes, blames absent ones, or lets a person look."""
        if self.passed:
            return exit_codes.SUCCESS
        if LASTING.intersection(self.everywhere):
            return exit_codes.INVALID
        if self._silent and not self._unfit and not self.problems:
            return exit_codes.NODE_LOST
        return exit_codes.PREFLIGHT_FAILED

    @property
    def _unfit(self) -> tuple[str, ...]:
        own = [check for check in Check if check is not Check.REPORT and check not in self.everywhere]
        return self._found_by(*own)

    @property
    def _silent(self) -> tuple[str, ...]:
        return () if Check.REPORT in self.everywhere else self._found_by(Check.REPORT)

    def _found_by(self, *checks: Check) -> tuple[str, ...]:
        bad = {finding.node for finding in self.findings if finding.level == "bad" and finding.check in checks}
        return tuple(node for node in self.nodes if node in bad)


def to_json(report: Report) -> dict[str, Any]:
    """preflight.json."""
    return {
        "passed": report.passed,
        "problem": "; ".join(report.problems) or None,
        "bad_nodes": [
            {"name": finding.node, "reason": finding.reason, "fix": finding.fix}
            for finding in report.findings
            if finding.level == "bad" and finding.node in report.bad_nodes
        ],
        "findings": [asdict(finding) for finding in report.findings],
        "nodes": list(report.nodes),
        "used": list(report.used),
        "elapsed_s": round(report.elapsed_s, 2),
    }


def to_text(report: Report) -> str:
    """The table: each finding with node, verdict, reason and fix, the good nodes as one node set."""
    troubled = {finding.node for finding in report.findings}
    fine = [node for node in report.nodes if node not in troubled]
    bad = {finding.node for finding in report.findings if finding.level == "bad"}
    good = len(report.nodes) - len(bad)
    lines = [
        f"preflight: {good} of {len(report.nodes)} nodes are good, {report.wanted} needed ({report.elapsed_s:.1f} s)"
    ]
    width = max((len(finding.node) for finding in report.findings), default=0)
    for finding in sorted(report.findings, key=lambda finding: finding.level):
        lines.append(f"  {finding.node:{width}}  {finding.level:7}  {finding.reason}")
        lines.append(f"  {'':{width}}  {'':7}  -> {finding.fix}")
    if fine:
        lines.append(f"  ok       {fold(fine)}")
    lines += [f"  {problem}" for problem in report.problems]
    if report.passed:
        spare = [node for node in report.nodes if node not in (*report.used, *bad)]
        lines.append(f"  used     {', '.join(report.used)}" + (f"; spare: {fold(spare)}" if spare else ""))
    return "\n".join(lines)
