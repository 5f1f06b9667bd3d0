"""How the agents judge the end of an attempt: by the driver's record, without waiting for what hangs."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from r1hpc import exit_codes
from r1hpc.cluster.agent import lead
from r1hpc.cluster.head_agent import HeadAgent
from r1hpc.cluster.hosts import ClusterHost
from r1hpc.cluster.launch import Launch
from r1hpc.cluster.lookout import Lookout
from r1hpc.cluster.node import Node
from r1hpc.cluster.outcome import Outcome, write_outcome
from r1hpc.cluster.rollcall import Attendance, RollCall
from r1hpc.cluster.supervisor import Exit, Supervisor
from r1hpc.cluster.worker_agent import WorkerAgent
from r1hpc.publish import publish_json
from r1hpc.rundir import AttemptDir, RunDir
from tests.cluster.loopback import port_base

DONE = Outcome(exit_codes.SUCCESS, "all 3 iterations are done")


class Children(Supervisor):
    """Stands in for Ray and the driver: starts a sleeper for each, and reports the ends that a test scripts."""

    def __init__(self, logs: Path) -> None:
        super().__init__("node", logs, "n1", logs / "scratch")
        self.ends: list[Exit] = []
        self.started: dict[str, subprocess.Popen[bytes]] = {}
        self.stopping_s: list[float] = []
        self.while_stopping: Callable[[], object] = list

    def start(
        self, name: str, argv: Sequence[str], environment: Mapping[str, str], stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        self.started[name] = subprocess.Popen(["sleep", "60"], stdin=stdin)
        return self.started[name]

    def reap(self) -> list[Exit]:
        ended, self.ends = self.ends, []
        return ended

    def stop_all(self, deadline_s: float = 10.0) -> list[int]:
        self.stopping_s.append(deadline_s)
        self.while_stopping()
        return []

    def end(self, name: str, code: int) -> None:
        self.ends.append(Exit(name, code, self.log(name)))


class Scene:
    """One attempt of one host, with Ray's port open and nothing behind it."""

    def __init__(self, root: Path, num_hosts: int = 1) -> None:
        hosts = tuple(ClusterHost(f"local{index}", f"127.0.0.{10 + index}", 1) for index in range(num_hosts))
        launch = Launch("test", "cpu", hosts, port_base(), 200, 80_000_000, 120.0, 1)
        run = RunDir(root)
        self.attempt: AttemptDir = run.attempt("local", 0)
        self.attempt.logs.mkdir(parents=True)
        self.attempt.secret.write_text("secret")
        publish_json(run.run, {})
        publish_json(self.attempt.begin, {"job_id": "local", "kill_wait_s": 3})
        self.stops: list[str] = []
        self.node = Node(run, self.attempt, launch, hosts[-1], "end", dict(os.environ), self.stops)
        self.children = Children(self.attempt.logs)
        self.ray = socket.create_server((hosts[0].address, launch.ports(hosts[0]).gcs))
        self.timers: list[threading.Timer] = []

    def head(self, closing_s: float = 30.0) -> Outcome:
        roll_call = RollCall(self.node.roll_call, [], b"secret")
        try:
            return HeadAgent(self.node, self.children, roll_call, self.attempt.root, closing_s).run()
        finally:
            roll_call.close()

    def after(self, seconds: float, what: object, *arguments: object) -> None:
        self.timers.append(threading.Timer(seconds, what, arguments))  # type: ignore[arg-type]
        self.timers[-1].start()

    def close(self) -> None:
        for timer in self.timers:
            timer.join()
        for child in self.children.started.values():
            child.kill()
            child.wait()
            if child.stdin is not None:
                child.stdin.close()
        self.ray.close()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path / "run")
    yield made
    made.close()


def test_a_driver_that_hangs_while_it_closes_is_left_with_the_outcome_it_has_recorded(scene: Scene) -> None:
    publish_json(scene.attempt.driver, DONE.to_json())
    started = time.monotonic()
    assert scene.head(closing_s=0.5) == DONE
    assert 0.5 < time.monotonic() - started < 5
    assert scene.children.started["driver"].poll() is None


@pytest.mark.parametrize("code", [0, -11, 1])
def test_what_a_driver_recorded_counts_more_than_its_exit_code(scene: Scene, code: int) -> None:
    def leave() -> None:
        publish_json(scene.attempt.driver, DONE.to_json())
        scene.children.end("driver", code)

    scene.after(0.3, leave)
    assert scene.head() == DONE


def test_a_driver_without_a_record_has_crashed(scene: Scene) -> None:
    scene.after(0.3, scene.children.end, "driver", 0)
    outcome = scene.head()
    assert (outcome.exit_code, outcome.reason[:30]) == (exit_codes.CRASHED, "driver ended with exit code 0 ")


def test_a_ray_that_dies_while_the_driver_closes_does_not_spoil_its_success(scene: Scene) -> None:
    publish_json(scene.attempt.driver, DONE.to_json())
    scene.after(1.5, scene.children.end, "ray", 1)
    assert scene.head() == DONE


def test_a_crash_that_the_driver_recorded_does_not_hide_the_lost_node_behind_it(scene: Scene) -> None:
    publish_json(scene.attempt.driver, Outcome(exit_codes.CRASHED, "an actor died").to_json())
    publish_json(scene.attempt.placement, [])
    scene.after(1.5, scene.children.end, "ray", 1)
    outcome = scene.head()
    assert (outcome.exit_code, outcome.lost_nodes) == (exit_codes.NODE_LOST, ("local0",))


def test_a_file_system_that_hangs_does_not_hold_up_the_head(scene: Scene) -> None:
    os.mkfifo(scene.attempt.driver)  # opening it to read waits for a writer
    scene.after(0.5, scene.stops.append, "SIGTERM")
    started = time.monotonic()
    assert scene.head().exit_code == exit_codes.STOP_REQUESTED
    assert time.monotonic() - started < 5  # a third of KillWait is left to the driver
    scene.attempt.driver.write_text(json.dumps(DONE.to_json()))  # let the thread go


def test_a_term_that_was_a_scancel_leaves_no_grace_time(scene: Scene, tmp_path: Path) -> None:
    publish_json(scene.attempt.begin, {"job_id": "7", "kill_wait_s": 3, "grace_s": 300})
    publish_json(scene.attempt.placement, [])
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(
        '#!/bin/sh\n[ "$*" = "show job -o 7" ] && echo "JobId=7 JobState=COMPLETING PreemptTime=None"\n'
    )
    scontrol.chmod(0o755)
    inherited = {**scene.node.inherited, "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    scene.node = replace(scene.node, inherited=inherited)
    scene.after(2.5, scene.stops.append, "SIGTERM")
    started = time.monotonic()
    assert scene.head().exit_code == exit_codes.STOP_REQUESTED
    assert 3.5 <= time.monotonic() - started < 15


def test_a_look_that_hangs_is_given_up(tmp_path: Path) -> None:
    attempt = AttemptDir(tmp_path)
    os.mkfifo(attempt.driver)
    lookout = Lookout(attempt, pause_s=0.05)
    lookout.start()
    started = time.monotonic()
    lookout.look_again(0.3)
    assert 0.3 <= time.monotonic() - started < 3
    assert (lookout.placed, lookout.recorded, lookout.closing_s) == (False, None, 0.0)
    attempt.placement.touch()
    attempt.driver.write_text(json.dumps(DONE.to_json()))
    lookout.look_again(5)
    assert (lookout.placed, lookout.recorded) == (True, DONE)


def test_the_other_agents_hear_the_outcome_before_the_head_takes_its_own_node_down(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "run", num_hosts=2)
    node = replace(scene.node, host=scene.node.launch.head)
    other = Attendance(node.roll_call, "local1", b"secret")
    heard, left = threading.Event(), threading.Event()

    def attend() -> None:  # and stay, as on a node that does not let go of its processes
        while not left.wait(0.02):
            for message in other.poll():
                if "outcome" in message:
                    heard.set()

    attending = threading.Thread(target=attend)
    attending.start()
    in_time: list[bool] = []
    scene.children.while_stopping = lambda: in_time.append(heard.wait(5))
    started = time.monotonic()
    scene.after(2.0, scene.stops.append, "SIGTERM")
    assert lead(node, scene.children, scene.attempt.root).exit_code == exit_codes.STOP_REQUESTED
    ended = time.monotonic()
    left.set()
    attending.join()
    other.close()
    assert in_time == [True]
    # KillWait is 3 s: one for the driver, one for the teardown of all, of which the head's own node has 0.4.
    assert scene.children.stopping_s == [pytest.approx(0.4)]
    assert ended - started < 2.0 + 3.0
    scene.close()


def test_an_agent_whose_head_ended_before_they_met_leaves_with_its_outcome(tmp_path: Path) -> None:
    scene = Scene(tmp_path / "run", num_hosts=2)
    outcome = Outcome(exit_codes.BRING_UP_FAILED, "the head's agent cannot listen", ("local0",))
    write_outcome(scene.attempt.outcome, outcome)
    attendance = Attendance(scene.node.roll_call, scene.node.host.name, b"secret")
    started = time.monotonic()
    assert WorkerAgent(scene.node, scene.children, attendance, scene.attempt.root).run() == outcome
    assert time.monotonic() - started < 10
    scene.close()
