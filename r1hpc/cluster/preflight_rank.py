"""One rank of the preflight, in the order that keeps a bad node from hiding: report first, MPI last, rank 0 judges."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1hpc import exit_codes
from r1hpc.cluster.facts import NodeFacts, collect, read_facts, wait_for_facts, write_facts
from r1hpc.cluster.hostfile import read_hostfile, require
from r1hpc.cluster.hostfile_forms import write_hydra, write_openmpi
from r1hpc.cluster.hosts import ClusterHost, Node, hosts_per_machine, in_hostfile_order, read_nodes, write_hosts
from r1hpc.cluster.launch import Launch, write_launch, write_secret
from r1hpc.cluster.leftovers import end_earlier_attempts, processes_of_others
from r1hpc.cluster.mpi_child import MpiChild
from r1hpc.cluster.ports import choose_port_base
from r1hpc.cluster.preflight import Check, Finding, Requirements, absent, judge, misplaced
from r1hpc.cluster.preflight_report import Report, to_json, to_text
from r1hpc.config import Config, load_config
from r1hpc.errors import ClusterError, PreflightError, R1hpcError
from r1hpc.publish import publish_json
from r1hpc.rundir import AttemptDir, RunDir

logger = logging.getLogger(__name__)

_REPORTS_SHARE, _REPORTS_LIMIT_S = 0.4, 120.0
"""Of hosts.preflight_timeout_s, for the reports; MPI may use the rest but the last part."""
_MPI_SHARE = 0.8
_POLL_S = 0.1


@dataclass(frozen=True)
class Rank:
    """Who this process is among the preflight's."""

    rank: int
    size: int
    environment: Mapping[str, str]
    scheduler_gpus: int | None
    """GPUs of this node that the scheduler gave to the job; None when it does not say."""


def run_rank(run: RunDir, attempt: AttemptDir, me: Rank, node: Node, world: MpiChild | None = None) -> int:
    """Report, meet the others, and on rank 0 judge and publish; returns the exit code (rank 0's is the verdict).

    `world` is given when MPI is up already, as it must be where no scheduler has made the attempt's directory.
    """
    started = time.monotonic()
    run_id = json.loads(run.run.read_text(encoding="utf-8"))["run_id"]
    for process in end_earlier_attempts(run_id, attempt.root):
        logger.warning("ended what an earlier attempt left behind: %s", process)
    foreign = [str(process) for process in processes_of_others(run_id)]
    facts = collect(node.name, run.root, me.environment, me.scheduler_gpus, foreign)
    write_facts(attempt.facts, facts)
    config = load_config(run.config).config
    meeting = _Meeting(attempt, me, facts, started, float(config.hosts.preflight_timeout_s))
    if me.rank != 0:
        meeting.follow(world)
        return exit_codes.SUCCESS
    report = _lead(run, attempt, config, run_id, meeting, world)
    publish_json(attempt.report, to_json(report))
    print(to_text(report), flush=True)
    return report.exit_code


class _Meeting:
    """The ranks' meeting: first in files, which cannot hang, then in MPI, which can."""

    def __init__(self, attempt: AttemptDir, me: Rank, facts: NodeFacts, started: float, timeout_s: float) -> None:
        self._attempt = attempt
        self._me = me
        self._facts = facts
        self.started = started
        self.reports_deadline = started + min(_REPORTS_SHARE * timeout_s, _REPORTS_LIMIT_S)
        self._mpi_deadline = started + _MPI_SHARE * timeout_s

    def open(self) -> None:
        """Rank 0: every report is there, go on to MPI."""
        publish_json(self._attempt.roll, {"canary": self._facts.canary})

    def follow(self, world: MpiChild | None) -> None:
        """Another rank: wait for rank 0, then exchange. What fails here, rank 0 sees and judges."""
        while not self._attempt.roll.exists():
            if self._attempt.report.exists():
                return  # rank 0 has judged already
            if time.monotonic() > self._mpi_deadline:
                logger.error("%s: rank 0 has not opened the meeting in time", self._facts.node)
                return
            time.sleep(_POLL_S)
        try:
            self.exchange(world)
        except PreflightError as error:
            logger.error("%s: %s", self._facts.node, error)

    def exchange(self, world: MpiChild | None) -> list[tuple[dict[str, Any], float]]:
        """Collective: every rank's node, canary and what it reads of its neighbour's file, with its clock.

        Raises PreflightError when MPI hangs, fails, or does not join all ranks.
        """
        if world is not None:
            return self._exchange(world)
        with MpiChild() as child:
            child.begin(self._me.size, self._mpi_deadline)
            return self._exchange(child)

    def _exchange(self, world: MpiChild) -> list[tuple[dict[str, Any], float]]:
        nodes = read_nodes(self._attempt.begin)
        neighbour = nodes[(self._me.rank + 1) % len(nodes)].name
        seen = read_facts(self._attempt.facts, neighbour)
        mine = {
            "node": self._facts.node,
            "canary": self._facts.canary,
            "neighbour": neighbour,
            "seen": seen.canary if seen else None,
        }
        return world.exchange(mine, self._mpi_deadline)


def _lead(
    run: RunDir, attempt: AttemptDir, config: Config, run_id: str, meeting: _Meeting, world: MpiChild | None
) -> Report:
    """Rank 0: gather, judge, and if the run may start publish how."""
    nodes = read_nodes(attempt.begin)
    names = [node.name for node in nodes]
    reports = wait_for_facts(attempt.facts, names, meeting.reports_deadline)
    waited = time.monotonic() - meeting.started
    findings = [absent(name, waited) for name in names if name not in reports]
    problem, clocks = None, dict[str, float]()
    if not findings:
        meeting.open()
        try:
            answers = meeting.exchange(world)
            clocks = {answer["node"]: clock for answer, clock in answers}
            findings += _judge_canaries([answer for answer, _ in answers])
        except PreflightError as error:
            problem = f"all nodes report, but MPI does not join them: {error}"
    findings += judge(list(reports.values()), clocks, _requirements(run, config))
    findings += [
        found for node in nodes if node.name in reports for found in misplaced(reports[node.name], node.address)
    ]
    used: list[ClusterHost] = []
    if problem is None and not any(name not in reports for name in names):
        try:
            used = _choose(nodes, config, reports, {finding.node for finding in findings if finding.level == "bad"})
        except R1hpcError as error:
            problem = str(error)
    if len(used) == config.hosts.num_nodes:
        try:
            _publish(attempt, config, run_id, used, [reports[host.name] for host in used])
        except ClusterError as error:
            problem, used = str(error), []
    elapsed = time.monotonic() - meeting.started
    return Report(
        tuple(names), tuple(findings), tuple(host.name for host in used), config.hosts.num_nodes, elapsed, problem
    )


def _requirements(run: RunDir, config: Config) -> Requirements:
    try:
        plan = json.loads(run.plan.read_text(encoding="utf-8"))
    except FileNotFoundError:
        plan = {}
    return Requirements.of(config.hosts, plan.get("host_bytes_needed"), plan.get("disk_bytes_needed"))


def _judge_canaries(answers: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """What each node reads of its neighbour must be what the neighbour says."""
    written = {answer["node"]: answer["canary"] for answer in answers}
    return [
        Finding(
            answer["node"],
            Check.SAME_FILES,
            f"it does not see what {answer['neighbour']} has just written to the run directory",
            "put run.root on a file system that all nodes share; look at its mounts",
        )
        for answer in answers
        if answer["seen"] != written[answer["neighbour"]]
    ]


def _choose(
    nodes: Sequence[Node], config: Config, reports: Mapping[str, NodeFacts], bad: set[str]
) -> list[ClusterHost]:
    """The first hosts.num_nodes good nodes, in hostfile order; fewer when there are not so many.

    Raises ClusterError or HostfileError when the hostfile does not fit the job.
    """
    hosts = config.hosts
    ordered = list(nodes)
    if hosts.hostfile != "auto":
        hostfile = read_hostfile(Path(hosts.hostfile))
        require(hostfile, hosts.num_nodes, hosts.gpus_per_node)
        ordered = in_hostfile_order(nodes, [host.name for host in hostfile.hosts])
    good = [node for node in ordered if node.name not in bad][: hosts.num_nodes]
    return [
        ClusterHost(node.name, _address(node, reports[node.name], hosts.fabric_interface), hosts.gpus_per_node)
        for node in good
    ]


def _address(node: Node, facts: NodeFacts, interface: str | None) -> str:
    return facts.addresses[interface][0] if interface else node.address


def _joins_at_once(facts: Sequence[NodeFacts]) -> int:
    """Ray gives each joining host 30 s of wall time and takes some 3 s of CPU: on a shared machine a few at a time."""
    if len({node.machine for node in facts}) == len(facts):
        return len(facts)
    return max(2, 2 * min(node.cpus for node in facts))


def _publish(
    attempt: AttemptDir, config: Config, run_id: str, used: Sequence[ClusterHost], reports: Sequence[NodeFacts]
) -> None:
    """The files that the agents start from; launch.json last, for it is what they look for.

    Raises ClusterError when no band of ports is free on all nodes.
    """
    hosts = config.hosts
    busy = [port for facts in reports for port in facts.busy_ports]
    base = choose_port_base(hosts.port_base, hosts.port_span, hosts_per_machine(used), busy, str(attempt.root))
    write_hosts(attempt.hosts, used)
    write_openmpi(used, attempt.hostfile)
    write_hydra(used, attempt.hydra_hostfile)
    write_secret(attempt.secret)
    launch = Launch(
        run_id=run_id,
        device=hosts.device,
        hosts=tuple(used),
        port_base=base,
        port_span=hosts.port_span,
        object_store_bytes=int(hosts.object_store_gib * 2**30),
        bring_up_timeout_s=float(hosts.bring_up_timeout_s),
        joins_at_once=_joins_at_once(reports),
    )
    write_launch(attempt.launch, launch)
