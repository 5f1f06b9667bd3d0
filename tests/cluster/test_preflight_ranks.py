"""The preflight's ranks as real processes, MPI included: what happens when one of them is missing, alone or blind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from r1hpc import exit_codes
from r1hpc.publish import publish_json
from r1hpc.rundir import AttemptDir, RunDir
from tests.cluster.loopback import HOME, make_run

MPIEXEC = Path(sys.executable).with_name("mpiexec")


def _attempt(run: RunDir, names: Sequence[str]) -> AttemptDir:
    attempt = run.attempt("test", 0)
    attempt.facts.mkdir(parents=True)
    nodes = [{"name": name, "address": f"127.0.0.{index + 10}"} for index, name in enumerate(names)]
    publish_json(attempt.begin, {"job_id": "test", "restart": 0, "nodes": nodes})
    return attempt


def _preflight(run: RunDir, attempt: AttemptDir, launcher: Sequence[str], **environment: str) -> Any:
    command = [*launcher, sys.executable, "-m", "jobs.preflight", str(run.root), str(attempt.root)]
    return subprocess.run(
        command, cwd=HOME, env=dict(os.environ) | environment, capture_output=True, text=True, timeout=60, check=False
    )


def _mpiexec(count: int) -> list[str]:
    return [str(MPIEXEC), "-launcher", "fork", "-n", str(count)]


def _report(attempt: AttemptDir) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(attempt.report.read_text(encoding="utf-8"))
    return report


def test_ranks_that_meet_write_all_that_the_agents_need(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "hosts.num_nodes=3")
    attempt = _attempt(run, ["a", "b", "c"])
    done = _preflight(run, attempt, _mpiexec(3))
    assert done.returncode == exit_codes.SUCCESS, done.stdout + done.stderr
    assert _report(attempt)["used"] == ["a", "b", "c"]
    assert attempt.hostfile.read_text() == "127.0.0.10 slots=2\n127.0.0.11 slots=2\n127.0.0.12 slots=2\n"
    launch = json.loads(attempt.launch.read_text(encoding="utf-8"))
    assert [host["name"] for host in launch["hosts"]] == ["a", "b", "c"]
    assert launch["joins_at_once"] == max(2, 2 * len(os.sched_getaffinity(0)))  # they share this machine


def test_a_hostfile_decides_the_order_and_the_head(tmp_path: Path) -> None:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("127.0.0.11 slots=2\na slot=2\nspare slots=2\n")
    run = make_run(tmp_path / "run", "hosts.num_nodes=2", f"hosts.hostfile={hostfile}")
    attempt = _attempt(run, ["a", "b"])
    assert _preflight(run, attempt, _mpiexec(2)).returncode == exit_codes.SUCCESS
    assert [host["name"] for host in json.loads(attempt.hosts.read_text())] == ["b", "a"]


def test_a_node_more_than_needed_is_a_spare(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "hosts.num_nodes=2")
    attempt = _attempt(run, ["a", "b", "c"])
    done = _preflight(run, attempt, _mpiexec(3))
    assert done.returncode == exit_codes.SUCCESS, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "  used     a, b; spare: c"


def test_a_node_that_does_not_report_is_named_although_mpi_would_hang(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "hosts.num_nodes=2", "hosts.preflight_timeout_s=5")
    attempt = _attempt(run, ["a", "b"])
    started = time.monotonic()
    # Rank 0 of two, as srun starts it, and nobody else.
    done = _preflight(run, attempt, [], SLURM_PROCID="0", SLURM_NTASKS="2", SLURMD_NODENAME="a")
    assert done.returncode == exit_codes.NODE_LOST
    assert time.monotonic() - started < 5
    assert [bad["name"] for bad in _report(attempt)["bad_nodes"]] == ["b"]
    assert "b  bad      no report within 2 s" in done.stdout
    assert "-> it is down, or does not see the run directory" in done.stdout
    assert not attempt.launch.exists()


def test_processes_that_are_each_alone_in_mpi_are_an_error_and_no_run_of_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "hosts.num_nodes=2", "hosts.preflight_timeout_s=20")
    attempt = _attempt(run, ["a", "b"])
    other = subprocess.Popen(
        [sys.executable, "-m", "jobs.preflight", str(run.root), str(attempt.root)],
        cwd=HOME,
        env=dict(os.environ) | {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURMD_NODENAME": "b"},
        stderr=subprocess.PIPE,
        text=True,
    )
    done = _preflight(run, attempt, [], SLURM_PROCID="0", SLURM_NTASKS="2", SLURMD_NODENAME="a")
    _, errors = other.communicate(timeout=30)
    assert done.returncode == exit_codes.PREFLIGHT_FAILED
    assert "MPI_COMM_WORLD has 1 of 2 ranks" in _report(attempt)["problem"]
    assert "hosts.mpi is pmi2 for MPICH, pmix for Open MPI" in done.stdout
    assert "MPI_COMM_WORLD has 1 of 2 ranks" in errors
    assert _report(attempt)["bad_nodes"] == []  # no node is to blame


# Reports as a node must, and then never comes to MPI.
_ABSENTEE = """
import sys, time
from pathlib import Path
from r1hpc.cluster.facts import collect, write_facts
folder = Path(sys.argv[1])
write_facts(folder, collect("b", folder, {}, None, []))
time.sleep(30)
"""


def test_mpi_that_hangs_is_given_up_and_told_before_the_deadline(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "hosts.num_nodes=2", "hosts.preflight_timeout_s=6")
    attempt = _attempt(run, ["a", "b"])
    rank0 = [sys.executable, "-m", "jobs.preflight", str(run.root), str(attempt.root)]
    rank1 = [sys.executable, "-c", _ABSENTEE, str(attempt.facts)]
    started = time.monotonic()
    command = [*_mpiexec(1), *rank0, ":", "-n", "1", *rank1]
    done = subprocess.run(command, cwd=HOME, capture_output=True, text=True, timeout=60, check=False)
    assert time.monotonic() - started < 8
    assert done.returncode != 0
    assert "all nodes report, but MPI does not join them: " in str(_report(attempt)["problem"])
    assert "did not return within" in str(_report(attempt)["problem"])
    assert not attempt.launch.exists()


def test_a_rank_without_a_rank_0_leaves_by_itself(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "hosts.num_nodes=2", "hosts.preflight_timeout_s=2")
    attempt = _attempt(run, ["a", "b"])
    done = _preflight(run, attempt, [], SLURM_PROCID="1", SLURM_NTASKS="2", SLURMD_NODENAME="b")
    assert "b: rank 0 has not opened the meeting in time" in done.stderr


def test_a_machine_with_too_little_memory_is_bad_by_the_plans_number(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "hosts.num_nodes=1")
    publish_json(run.plan, {"host_bytes_needed": 10**15, "disk_bytes_needed": 1})
    attempt = _attempt(run, ["a"])
    assert _preflight(run, attempt, _mpiexec(1)).returncode == exit_codes.PREFLIGHT_FAILED
    (bad,) = _report(attempt)["bad_nodes"]
    assert bad["reason"].endswith(f"needed are {10**15 / 2**30:.0f}")


def test_started_by_hand_it_says_how_it_is_started(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    attempt = _attempt(run, ["a"])
    cleaned = {name: "" for name in os.environ if name.startswith(("SLURM_", "PMI_", "OMPI_"))}
    done = _preflight(run, attempt, [], **cleaned)
    assert done.returncode == exit_codes.PREFLIGHT_FAILED
    assert "start it with srun or mpiexec, not by hand" in done.stderr


@pytest.mark.parametrize("count", [1, 3])
def test_the_wrong_number_of_processes_is_an_error(tmp_path: Path, count: int) -> None:
    run = make_run(tmp_path / "run")
    attempt = _attempt(run, ["a", "b"])
    done = _preflight(run, attempt, _mpiexec(count))
    assert done.returncode != 0
    assert f"MPICH started {count} processes for 2 nodes; it must be one a node" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_is_a_stop_request_and_no_fault_of_a_node(tmp_path: Path, number: signal.Signals) -> None:
    run = make_run(tmp_path / "run", "hosts.num_nodes=2")
    attempt = _attempt(run, ["a", "b"])
    waiting = subprocess.Popen(
        [sys.executable, "-m", "jobs.preflight", str(run.root), str(attempt.root)],
        cwd=HOME,
        env=dict(os.environ) | {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURMD_NODENAME": "a"},
    )
    deadline = time.monotonic() + 20
    while not (attempt.facts / "a.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    waiting.send_signal(number)
    assert waiting.wait(10) == exit_codes.STOP_REQUESTED
    assert not attempt.report.exists()
