"""The head's agent: starts Ray's head and the driver, calls the roll, decides how the attempt ends."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

from r1hpc import exit_codes
from r1hpc.cluster.grace import read_grace
from r1hpc.cluster.job_word import JobQuestion
from r1hpc.cluster.lookout import Lookout
from r1hpc.cluster.node import TICK_S, Node
from r1hpc.cluster.outcome import Outcome, nodes_lost
from r1hpc.cluster.ray_command import has_joined, ray_environment, start_command
from r1hpc.cluster.rollcall import Answers, RollCall
from r1hpc.cluster.stop_requests import StopRequests
from r1hpc.cluster.supervisor import Exit, Supervisor

_BACKSTOP_S = 30.0
"""Beyond the driver's own deadline; it may hang inside Ray."""
CLOSING_S = 90.0
"""A driver that knows how it ended has so long to end what it has started; it may hang inside Ray."""
_LAST_LOOK_S = 5.0
"""For what a driver that has just ended left on the shared file system; far below the silence that loses the head."""


class HeadAgent:
    """One attempt, seen from its first host."""

    def __init__(
        self,
        node: Node,
        supervisor: Supervisor,
        roll_call: RollCall,
        scratch: Path,
        closing_s: float = CLOSING_S,
    ) -> None:
        self._node = node
        self._supervisor = supervisor
        self._roll_call = roll_call
        self._closing_s = closing_s
        self._scratch = scratch
        self._environment = ray_environment(
            node.inherited, node.launch, node.host, node.attempt.secret, node.marks, scratch
        )
        self._driver: subprocess.Popen[bytes] | None = None
        self._head_is_up = False
        self._told: set[str] = set()
        self._joining: set[str] = set()
        self._own_stops = 0
        self.grace = read_grace(node.attempt.begin, node.run.run)
        self._stops = StopRequests(self.grace)
        self._lookout = Lookout(node.attempt)
        self._question = JobQuestion(_job_id(node.attempt.begin), node.inherited)

    def run(self) -> Outcome:
        """Run the attempt to its end. Everything that was started still runs when this returns."""
        self._started = time.monotonic()
        command = start_command(self._node.launch, self._node.host, self._scratch)
        self._supervisor.start("ray", command, self._environment)
        while (outcome := self._tick()) is None:
            time.sleep(TICK_S)
        return outcome

    def _tick(self) -> Outcome | None:
        answers = self._roll_call.poll()
        ended = self._supervisor.reap()
        outcome = self._judge_agents(answers) or self._judge_children(ended) or self._judge_time()
        if outcome is not None:
            return self._driver_first(outcome)
        self._bring_up(answers.joined)
        own = self._node.stop_requests[self._own_stops :]
        self._own_stops += len(own)
        return self._forward_stops([*(f"{name} at {self._node.host.name}" for name in own), *answers.stops])

    def _bring_up(self, joined: list[str]) -> None:
        """Start the driver as soon as Ray listens; let the others join once the head has, so many at a time."""
        if self._driver is None and self._ray_listens():
            self._driver = self._start_driver()
            # The last process that is forked here; from now on nothing of the beat touches the shared file system.
            self._lookout.start()
        self._joining -= set(joined)
        self._head_is_up = self._head_is_up or has_joined(self._supervisor.log("ray"))
        if not self._head_is_up:
            return
        for name in self._roll_call.present:
            if name not in self._told and len(self._joining) < self._node.launch.joins_at_once:
                self._roll_call.tell(name, {"join": True})
                self._told.add(name)
                self._joining.add(name)

    def _judge_agents(self, answers: Answers) -> Outcome | None:
        if answers.lost:
            return nodes_lost([lost.name for lost in answers.lost], answers.lost[0].reason)
        if answers.failures:
            names = tuple(failure.name for failure in answers.failures)
            reasons = "; ".join(f"{failure.name}: {failure.reason}" for failure in answers.failures)
            return Outcome(self._node_failure, reasons, names)
        missing = self._roll_call.missing
        if missing and time.monotonic() - self._started > self._node.roll_call_s:
            total = len(self._node.launch.hosts)
            reason = (
                f"waiting for agents: {total - len(missing)} of {total} after {self._node.roll_call_s:g} s "
                f"(missing {', '.join(missing)})"
            )
            return Outcome(exit_codes.BRING_UP_FAILED, reason, tuple(missing))
        return None

    def _judge_children(self, ended: list[Exit]) -> Outcome | None:
        by_name = {end.name: end for end in ended}
        if "driver" in by_name:
            return self._driver_outcome(by_name["driver"])
        if "ray" in by_name:
            return Outcome(self._node_failure, f"{self._node.host.name}: {by_name['ray']}", (self._node.host.name,))
        return None

    def _driver_first(self, outcome: Outcome) -> Outcome:
        """What the driver said of its end counts, whatever breaks while it closes.

        But not that it crashed: that may be the echo of a loss which the agents only now know of.
        """
        recorded = self._lookout.recorded
        return outcome if recorded is None or recorded.exit_code == exit_codes.CRASHED else recorded

    def _judge_time(self) -> Outcome | None:
        if self._lookout.closing_s > self._closing_s:
            return self._lookout.recorded
        limit = self._node.launch.bring_up_timeout_s + _BACKSTOP_S
        if time.monotonic() - self._started < limit or self._lookout.placed:
            return None
        head = self._node.host
        if self._driver is None:
            port, log = self._node.launch.ports(head).gcs, self._supervisor.log("ray")
            reason = f"Ray's head does not listen on {head.address} port {port} after {limit:g} s (see {log})"
            return Outcome(exit_codes.BRING_UP_FAILED, reason, (head.name,))
        log = self._supervisor.log("driver")
        return Outcome(
            exit_codes.BRING_UP_FAILED, f"nothing was placed in {limit:g} s and the driver hangs (see {log})"
        )

    def _forward_stops(self, requests: list[str]) -> Outcome | None:
        """Hand stop requests on to the driver; a driver that does not leave in time is left behind.

        At the first one a driver that has placed its actors decides by the deadline what it can still save.
        """
        for request in requests:
            self._stops.add(request, time.time(), at_work=self._lookout.placed)
            self._tell_driver({"stop": request, "deadline": self._stops.deadline})
        if self._stops.is_doubtful:
            self._question.ask()
        if (word := self._question.take()) is not None and self._stops.learn(word):
            self._tell_driver({"stop": f"Slurm (JobState={word.state})", "deadline": self._stops.deadline})
        if self._stops and (self._driver is None or self._stops.over(time.time())):
            return self._driver_first(Outcome(exit_codes.STOP_REQUESTED, f"asked to stop by {self._stops}"))
        return None

    def _start_driver(self) -> subprocess.Popen[bytes]:
        node = self._node
        command = [sys.executable, "-m", "r1hpc.run", str(node.run.root), str(node.attempt.root), "--until", node.until]
        return self._supervisor.start("driver", command, self._environment, stdin=subprocess.PIPE)

    def _tell_driver(self, message: dict[str, str | float | None]) -> None:
        if self._driver is None or self._driver.stdin is None:
            return
        try:
            self._driver.stdin.write(json.dumps(message).encode() + b"\n")
            self._driver.stdin.flush()
        except BrokenPipeError:
            return  # it has just left; the next tick reaps it

    def _driver_outcome(self, end: Exit) -> Outcome:
        """What it has recorded, whatever its last breath looked like; without a record it has crashed."""
        self._lookout.look_again(_LAST_LOOK_S)
        return self._lookout.recorded or Outcome(exit_codes.CRASHED, str(end))

    def _ray_listens(self) -> bool:
        port = self._node.launch.ports(self._node.host).gcs
        try:
            socket.create_connection((self._node.host.address, port), timeout=0.5).close()
        except OSError:
            return False
        return True

    @property
    def _node_failure(self) -> int:
        return exit_codes.NODE_LOST if self._lookout.placed else exit_codes.BRING_UP_FAILED


def _job_id(begin: Path) -> str:
    return str(json.loads(begin.read_text(encoding="utf-8")).get("job_id", ""))
