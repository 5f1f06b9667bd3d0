"""The preflight's report: preflight.json for the requeue decision, a table for people."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from r1hpc.cluster.nodeset import fold
from r1hpc.cluster.preflight import Finding


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
    def bad_nodes(self) -> tuple[str, ...]:
        """Nodes that must not be used."""
        bad = {finding.node for finding in self.findings if finding.level == "bad"}
        return tuple(node for node in self.nodes if node in bad)


def to_json(report: Report) -> dict[str, Any]:
    """preflight.json."""
    return {
        "passed": report.passed,
        "problem": report.problem,
        "bad_nodes": [
            {"name": finding.node, "reason": finding.reason, "fix": finding.fix}
            for finding in report.findings
            if finding.level == "bad"
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
    good = len(report.nodes) - len(report.bad_nodes)
    lines = [
        f"preflight: {good} of {len(report.nodes)} nodes are good, {report.wanted} needed ({report.elapsed_s:.1f} s)"
    ]
    width = max((len(finding.node) for finding in report.findings), default=0)
    for finding in sorted(report.findings, key=lambda finding: finding.level):
        lines.append(f"  {finding.node:{width}}  {finding.level:7}  {finding.reason}")
        lines.append(f"  {'':{width}}  {'':7}  -> {finding.fix}")
    if fine:
        lines.append(f"  ok       {fold(fine)}")
    if report.problem is not None:
        lines.append(f"  {report.problem}")
    if report.passed:
        spare = [node for node in report.nodes if node not in (*report.used, *report.bad_nodes)]
        lines.append(f"  used     {', '.join(report.used)}" + (f"; spare: {fold(spare)}" if spare else ""))
    return "\n".join(lines)
