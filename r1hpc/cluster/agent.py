"""The node agent: one to a host, the parent of everything that an attempt runs there."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from r1hpc import exit_codes
from r1hpc.cluster.head_agent import HeadAgent
from r1hpc.cluster.launch import read_secret
from r1hpc.cluster.node import Node
from r1hpc.cluster.outcome import Outcome, write_outcome
from r1hpc.cluster.rollcall import Attendance, RollCall
from r1hpc.cluster.scratch import keep_ray_logs, make_scratch, remove_scratch
from r1hpc.cluster.supervisor import Supervisor
from r1hpc.cluster.worker_agent import WorkerAgent

logger = logging.getLogger(__name__)

_LEAVE_S = 15.0
"""The other agents have this long to take their nodes down; one that never hears of a success calls it a loss."""
_HASTY_LEAVE_S = 5.0
"""The same for an attempt that was asked to stop: the kill is near, and every agent has heard already."""


def run_agent(node: Node) -> int:
    """Run this host's part of the attempt; returns the exit code that all its agents leave with."""
    scratch = make_scratch(node.mark, node.marks)
    node.attempt.logs.mkdir(parents=True, exist_ok=True)
    try:
        with Supervisor(node.mark, node.attempt.logs, node.host.name, scratch) as supervisor:
            lead = _lead if node.host == node.launch.head else _follow
            outcome = lead(node, supervisor, scratch)
        # After a stop request the kill is near; of this and of the clock Ray is not to blame.
        if outcome.exit_code not in (exit_codes.SUCCESS, exit_codes.STOP_REQUESTED, exit_codes.OUT_OF_TIME):
            _keep_ray_logs(scratch, node.attempt.logs / f"{node.host.name}-ray")
    finally:
        remove_scratch(scratch)
    return outcome.exit_code


def _keep_ray_logs(scratch: Path, target: Path) -> None:
    """A disk without room for them must not change the exit code."""
    try:
        keep_ray_logs(scratch, target)
    except OSError as error:
        logger.error("Ray's logs are not kept in %s: %s", target, error)


def _lead(node: Node, supervisor: Supervisor, scratch: Path) -> Outcome:
    expected = [host.name for host in node.launch.hosts if host != node.host]
    try:
        roll_call = RollCall(node.roll_call, expected, read_secret(node.attempt.secret))
    except OSError as error:
        address, port = node.roll_call
        reason = (
            f"the head's agent cannot listen on {address} port {port}: {os.strerror(error.errno or 0)}; "
            f"is that {node.host.name}'s address, and hosts.port_base = {node.launch.port_base} free there?"
        )
        outcome = Outcome(exit_codes.BRING_UP_FAILED, reason, (node.host.name,))
        write_outcome(node.attempt.outcome, outcome)
        logger.error("%s", reason)
        return outcome
    outcome = HeadAgent(node, supervisor, roll_call, scratch).run()
    # First of all: the kill may come any moment now, and the decision to requeue reads this.
    write_outcome(node.attempt.outcome, outcome)
    logger.info("attempt %s: exit code %d: %s", node.attempt.root.name, outcome.exit_code, outcome.reason)
    supervisor.stop_all()
    patience_s = _HASTY_LEAVE_S if outcome.exit_code == exit_codes.STOP_REQUESTED else _LEAVE_S
    staying = roll_call.dismiss(outcome, patience_s)
    if staying:
        logger.warning("agents still there after %g s: %s", patience_s, ", ".join(staying))
    roll_call.close()
    return outcome


def _follow(node: Node, supervisor: Supervisor, scratch: Path) -> Outcome:
    attendance = Attendance(node.roll_call, node.host.name, read_secret(node.attempt.secret))
    outcome = WorkerAgent(node, supervisor, attendance, scratch).run()
    if outcome.exit_code != exit_codes.SUCCESS:
        logger.info("%s leaves with exit code %d: %s", node.host.name, outcome.exit_code, outcome.reason)
    left = supervisor.stop_all()
    if left:
        logger.warning("pids still there after SIGKILL: %s", ", ".join(map(str, left)))
    attendance.close()
    return outcome
