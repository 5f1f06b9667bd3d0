"""What an agent knows of its node: marks that no other run's agent has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from r1hpc.cluster.hosts import ClusterHost
from r1hpc.cluster.launch import Launch
from r1hpc.cluster.node import Node
from r1hpc.rundir import AttemptDir, RunDir

HOSTS = (ClusterHost("local01", "127.0.0.10", 2), ClusterHost("local02", "127.0.0.11", 2))
LAUNCH = Launch("run-1", "cpu", HOSTS, 26000, 400, 80_000_000, 120.0, 4)


def _node(root: str, launch: Launch = LAUNCH, host: int = 0) -> Node:
    run = RunDir(Path(root))
    return Node(run, AttemptDir(run.attempts / "local-r0"), launch, HOSTS[host], "end", {}, [])


def test_the_first_attempts_of_two_runs_have_different_marks() -> None:
    marks = {
        _node("/runs/a").mark,
        _node("/runs/b").mark,  # the same id: a run directory that somebody copied
        _node("/runs/a", replace(LAUNCH, run_id="run-2")).mark,
        _node("/runs/a", host=1).mark,
    }
    assert len(marks) == 4
    assert all("local-r0" in mark for mark in marks)
    assert _node("/runs/a").mark == _node("/runs/a").mark


def test_agents_wait_for_each_other_as_long_as_half_of_the_bring_up() -> None:
    assert _node("/runs/a").roll_call_s == 60
    assert _node("/runs/a", replace(LAUNCH, bring_up_timeout_s=1800.0)).roll_call_s == 900
    assert _node("/runs/a", replace(LAUNCH, bring_up_timeout_s=30.0)).roll_call_s == 45
