"""Every other host's agent: joins Ray when the head says so, then stays until the head says how it ended."""

from __future__ import annotations

import time
from pathlib import Path

from r1hpc import exit_codes
from r1hpc.cluster.node import TICK_S, Node
from r1hpc.cluster.outcome import Outcome, nodes_lost, read_outcome, write_outcome_if_absent
from r1hpc.cluster.ray_command import has_joined, ray_environment, start_command
from r1hpc.cluster.rollcall import SILENCE_S, Attendance
from r1hpc.cluster.supervisor import Exit, Supervisor

_ATTEMPTS = 3
"""Ray gives a raylet 30 s, a constant of its own, which a loaded machine can miss."""
_LOOK_S = 2.0
"""Between two looks for the outcome of a head that may have ended before it met us."""
_STOP_S = 5.0
"""Without the head, a stop request is obeyed after this long."""


class WorkerAgent:
    """One attempt, seen from a host that is not the first."""

    def __init__(self, node: Node, supervisor: Supervisor, attendance: Attendance, scratch: Path) -> None:
        self._node = node
        self._supervisor = supervisor
        self._attendance = attendance
        self._scratch = scratch
        self._environment = ray_environment(
            node.inherited, node.launch, node.host, node.attempt.secret, node.marks, scratch
        )
        self._joins = 0
        self._joined = False
        self._sent = 0
        self._failed_at: float | None = None
        self._stopping_since: float | None = None
        self._looked = time.monotonic()

    def run(self) -> Outcome:
        """Serve the attempt to its end. Everything that was started still runs when this returns."""
        self._started = time.monotonic()
        while (outcome := self._tick()) is None:
            time.sleep(TICK_S)
        return outcome

    def _tick(self) -> Outcome | None:
        for message in self._attendance.poll():
            if "outcome" in message:
                return Outcome.from_json(message["outcome"])
            if "join" in message:
                self._join()
        if self._joins and not self._joined and has_joined(self._supervisor.log("ray")):
            self._joined = True
            self._attendance.send({"joined": True})
        for end in self._supervisor.reap():
            self._take_exit(end)
        self._forward_stops()
        outcome = self._judge_head()
        if outcome is not None:  # the head may have no say any more, and the decision to requeue reads this
            write_outcome_if_absent(self._node.attempt.outcome, outcome)
        return outcome

    def _join(self) -> None:
        self._joins += 1
        command = start_command(self._node.launch, self._node.host, self._scratch)
        self._supervisor.start("ray", command, self._environment)

    def _take_exit(self, end: Exit) -> None:
        """Ray ended here: try again if it never came up, else tell the head."""
        in_time = time.monotonic() - self._started < self._node.launch.bring_up_timeout_s
        if not has_joined(end.log) and self._joins < _ATTEMPTS and in_time:
            self._supervisor.stop_all()
            self._join()
            return
        self._failed_at = time.monotonic()
        self._attendance.send({"failed": str(end)})

    def _forward_stops(self) -> None:
        if not self._attendance.admitted:
            return
        for request in self._node.stop_requests[self._sent :]:
            self._sent += 1
            self._attendance.send({"stop": request})

    def _judge_head(self) -> Outcome | None:
        """Leave alone when the head is lost, never came, or does not answer a failure."""
        now, head = time.monotonic(), self._node.launch.head
        if (reason := self._attendance.lost) is not None:
            return nodes_lost([head.name], f"the head's agent: {reason}")
        if self._failed_at is not None and now - self._failed_at > SILENCE_S:
            return Outcome(exit_codes.NODE_LOST, f"Ray ended on {self._node.host.name}", (self._node.host.name,))
        if self._attendance.admitted:
            return None
        # Not while the head counts on our beat: a shared file system may hang.
        if now - self._looked > _LOOK_S:
            self._looked = now
            if (outcome := read_outcome(self._node.attempt.outcome)) is not None:
                return outcome
        if self._node.stop_requests:
            self._stopping_since = self._stopping_since or now
            if now - self._stopping_since > _STOP_S:
                return Outcome(exit_codes.STOP_REQUESTED, f"asked to stop by {', '.join(self._node.stop_requests)}")
        if now - self._started > self._node.roll_call_s:
            address, port = self._node.roll_call
            reason = (
                f"no answer from the head's agent on {head.name} ({address} port {port}) "
                f"within {self._node.roll_call_s:g} s"
            )
            return Outcome(exit_codes.BRING_UP_FAILED, reason, (head.name,))
        return None
