"""The node agent: one to a host, the parent of everything that an attempt runs there."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from r1hpc import exit_codes
from r1hpc.cluster.grace import Grace
from r1hpc.cluster.head_agent import HeadAgent
from r1hpc.cluster.launch import read_secret
from r1hpc.cluster.node import Node
from r1hpc.cluster.outcome import Outcome, write_outcome
from r1hpc.cluster.rollcall import Attendance, RollCall
from r1hpc.cluster.scratch import keep_ray_logs, make_scratch, remove_scratch
from r1hpc.cluster.supervisor import Supervisor
from r1hpc.cluster.worker_agent import WorkerAgent

logger = logging.getLogger(__name__)

_LEAVE_S = 25.0
"""All agents, the head's too, have this long to take their nodes down; one that never hears of a success calls it a
loss."""
_OWN_PART = 0.4
"""Of it, for the head's own node."""


def run_agent(node: Node) -> int:
    """Run this host's part of the attempt; returns the exit code that all its agents leave with."""
    scratch = make_scratch(node.mark, node.marks)
    node.attempt.logs.mkdir(parents=True, exist_ok=True)
    try:
        with Supervisor(node.mark, node.attempt.logs, node.host.name, scratch) as supervisor:
            part = lead if node.host == node.launch.head else _follow
            outcome = part(node, supervisor, scratch)
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


def lead(node: Node, supervisor: Supervisor, scratch: Path) -> Outcome:
    """The head's part: the attempt to its end, and the leave of all agents; returns how it ended."""
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
    head = HeadAgent(node, supervisor, roll_call, scratch)
    outcome = head.run()
    # First of all, and without waiting: the others take their nodes down while we do.
    roll_call.tell_outcome(outcome)
    # The kill may come any moment now, and the decision to requeue reads this.
    write_outcome(node.attempt.outcome, outcome)
    logger.info("attempt %s: exit code %d: %s", node.attempt.root.name, outcome.exit_code, outcome.reason)
    _take_down(supervisor, roll_call, _leave_s(outcome, head.grace))
    roll_call.close()
    return outcome


def _leave_s(outcome: Outcome, grace: Grace) -> float:
    """Seconds for the teardown. Of KillWait the driver had a third; this is another, and the last is a reserve."""
    return min(_LEAVE_S, grace.hurry_s) if outcome.exit_code == exit_codes.STOP_REQUESTED else _LEAVE_S


def _take_down(supervisor: Supervisor, roll_call: RollCall, within_s: float) -> None:
    """End everything here, and wait until the other agents have done so and left."""
    deadline = time.monotonic() + within_s
    left = supervisor.stop_all(_OWN_PART * within_s)
    if left:
        logger.warning("pids still there after SIGKILL: %s", ", ".join(map(str, left)))
    staying = roll_call.wait_until_left(deadline)
    if staying:
        logger.warning("agents still there after %g s: %s", within_s, ", ".join(staying))


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
