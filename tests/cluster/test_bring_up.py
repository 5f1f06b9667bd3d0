"""Node agents, Ray and the driver for real, on loopback: bring-up, stop, and every way to lose a part of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from r1hpc import exit_codes
from r1hpc.cluster.hosts import ClusterHost
from r1hpc.cluster.launch import Launch, write_launch, write_secret
from r1hpc.cluster.scratch import scratch_of_run
from tests.cluster.loopback import HOME, LocalAttempt, make_run, port_base

Start = Callable[..., LocalAttempt]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start attempts; whatever a failed test leaves of them is killed by pid."""
    made: list[LocalAttempt] = []

    def begin(*overrides: str, until: str = "bring-up") -> LocalAttempt:
        made.append(LocalAttempt.start(make_run(tmp_path / "run", *overrides), until))
        return made[-1]

    yield begin
    for attempt in made:
        attempt.process.kill()
        for process in attempt.processes():
            os.kill(process.pid, signal.SIGKILL)


def test_signals_to_all_that_agents_start_harm_nothing_and_every_slot_is_placed(start: Start) -> None:
    attempt = start("hosts.num_nodes=2")
    attempt.wait_for_children("gcs_server", "raylet/raylet --", "r1hpc.run")
    scratches = list(scratch_of_run(attempt.run_id))
    assert [scratch.stat().st_mode & 0o777 for scratch in scratches] == [0o700] * 2
    # Ray opens its own directory to everybody, which is why nobody may come that far.
    assert [path.name for scratch in scratches for path in scratch.iterdir() if path.stat().st_mode & 0o002] == ["ray"]
    for process in attempt.started():
        os.kill(process.pid, signal.SIGUSR1)
        os.kill(process.pid, signal.SIGTERM)
    assert attempt.finish() == exit_codes.SUCCESS
    slots = json.loads(attempt.attempt.placement.read_text(encoding="utf-8"))
    assert [(slot["rank"], slot["host"], slot["gpu"]) for slot in slots] == [
        (0, "local01", 0),
        (1, "local01", 1),
        (2, "local02", 0),
        (3, "local02", 1),
    ]
    assert len({slot["pid"] for slot in slots}) == 4
    assert attempt.attempt.hostfile.read_text() == "127.0.0.10 slots=2\n127.0.0.11 slots=2\n"
    assert attempt.attempt.hydra_hostfile.read_text() == "127.0.0.10:2\n127.0.0.11:2\n"
    assert attempt.processes() == []
    assert attempt.attempt.secret.stat().st_mode & 0o777 == 0o600


def test_a_signal_during_the_bring_up_stops_all_agents_within_seconds(start: Start) -> None:
    attempt = start("hosts.num_nodes=2")
    attempt.wait_for_children("gcs_server")
    asked = time.monotonic()
    os.kill(attempt.agent("local02"), signal.SIGTERM)
    assert attempt.finish() == exit_codes.STOP_REQUESTED
    assert time.monotonic() - asked < 10
    assert attempt.outcome["exit_code"] == exit_codes.STOP_REQUESTED
    assert "SIGTERM at local02" in attempt.outcome["reason"]
    assert attempt.processes() == []


def test_a_killed_worker_agent_is_named_and_nothing_of_its_node_lives_on(start: Start) -> None:
    attempt = start("hosts.num_nodes=2")
    attempt.wait_for_children("127.0.0.11 ", "raylet/raylet --")
    os.kill(attempt.agent("local02"), signal.SIGKILL)
    assert attempt.finish() == exit_codes.NODE_LOST
    assert attempt.outcome["lost_nodes"] == ["local02"]
    attempt.wait_until_gone()
    assert scratch_of_run(attempt.run_id) == {}


def test_a_killed_head_agent_is_noticed_by_the_others_which_leave(start: Start) -> None:
    attempt = start("hosts.num_nodes=3")
    attempt.wait_for_children("--node-name=local02", "--node-name=local03")
    worker_logs = [attempt.attempt.logs / f"local0{index}-agent.log" for index in (2, 3)]
    os.kill(attempt.agent("local01"), signal.SIGKILL)
    assert attempt.finish() == exit_codes.NODE_LOST
    assert (attempt.outcome["exit_code"], attempt.outcome["lost_nodes"]) == (exit_codes.NODE_LOST, ["local01"])
    for log in worker_logs:
        assert "exit code 78: lost local01: the head's agent" in log.read_text(encoding="utf-8")
    attempt.wait_until_gone()


def test_a_ray_that_dies_on_the_head_ends_the_attempt_and_its_logs_are_kept(start: Start) -> None:
    attempt = start("hosts.num_nodes=2")
    attempt.wait_for_children("gcs_server", "raylet/raylet --")
    (ray,) = attempt.children("--head", "--block")
    os.kill(ray, signal.SIGKILL)
    assert attempt.finish() == exit_codes.BRING_UP_FAILED
    assert attempt.outcome["lost_nodes"] == ["local01"]
    assert "ray ended with SIGKILL" in attempt.outcome["reason"]
    assert (attempt.attempt.logs / "local01-ray" / "gcs_server.out").stat().st_size > 0
    assert attempt.processes() == []


def test_a_ray_that_dies_before_it_has_joined_is_started_again(start: Start) -> None:
    attempt = start("hosts.num_nodes=2", "hosts.gpus_per_node=1")
    attempt.wait_for_children("--address 127.0.0.10:")
    (ray,) = attempt.children("--address 127.0.0.10:", "--block")
    os.kill(ray, signal.SIGKILL)
    assert attempt.finish() == exit_codes.SUCCESS
    assert (attempt.attempt.logs / "local02-ray.log").read_text(encoding="utf-8").count("Ray runtime started") == 1


def test_a_run_whose_model_is_not_there_says_which(start: Start) -> None:
    attempt = start("hosts.num_nodes=2", "ckpt.hf_checkpoint=/not/there", until="end")
    assert attempt.finish() == exit_codes.CRASHED
    assert "/not/there" in attempt.outcome["reason"]


def test_a_preflight_that_fails_starts_no_agent(start: Start) -> None:
    attempt = start("hosts.num_nodes=1", "hosts.host_memory_gib=1000000")
    assert attempt.finish() == exit_codes.PREFLIGHT_FAILED
    report = json.loads(attempt.attempt.report.read_text(encoding="utf-8"))
    (bad,) = report["bad_nodes"]
    assert bad["name"] == "local01"
    assert "needed are 1000000" in bad["reason"]
    assert not attempt.attempt.launch.exists()


def test_a_host_that_never_joins_ray_is_blamed(start: Start) -> None:
    attempt = start("hosts.num_nodes=2", "hosts.gpus_per_node=1", "hosts.bring_up_timeout_s=30")
    attempt.wait_for_children("--address 127.0.0.10:")
    (ray,) = attempt.children("--address 127.0.0.10:", "--block")
    os.kill(ray, signal.SIGSTOP)
    assert attempt.finish() == exit_codes.BRING_UP_FAILED
    assert "waiting for Ray nodes: 1 of 2" in attempt.outcome["reason"]
    assert attempt.outcome["lost_nodes"] == ["local02"]


def test_a_head_that_cannot_listen_says_so_at_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    attempt, base = run.attempt("local", 0), port_base()
    attempt.root.mkdir()
    # The preflight takes ports that are free; here somebody takes one right after it.
    head = ClusterHost("local01", "127.0.0.10", 1)
    write_launch(attempt.launch, Launch("test", "cpu", (head,), base, 200, 80_000_000, 120.0, 1))
    write_secret(attempt.secret)
    command = [sys.executable, "-m", "jobs.train", str(run.root), "--attempt", str(attempt.root), "--host", head.name]
    with socket.create_server((head.address, base)):
        done = subprocess.run(command, cwd=HOME, timeout=30, check=False)
    assert done.returncode == exit_codes.BRING_UP_FAILED
    outcome = json.loads(attempt.outcome.read_text(encoding="utf-8"))
    assert f"cannot listen on 127.0.0.10 port {base}: Address already in use" in outcome["reason"]
    assert outcome["lost_nodes"] == ["local01"]
