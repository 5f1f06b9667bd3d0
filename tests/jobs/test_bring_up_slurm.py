"""Preflight and node agents as a Slurm job: batch script to last process, with nodes that die on the way."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from r1hpc import exit_codes
from r1hpc.cluster.leftovers import processes_of
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.rehearsal.spec import Kind
from tests.jobs.slurm_job import SlurmJob

pytestmark = pytest.mark.slurm


@pytest.fixture
def folder(slurm4: RehearsalCluster, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory that the nodes of slurm4 share."""
    path = slurm4.shared_dir / request.node.name[:40]
    path.mkdir(parents=True)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def test_four_nodes_come_up_are_placed_and_leave_nothing(slurm4: RehearsalCluster, folder: Path) -> None:
    job = SlurmJob.submit(slurm4, folder / "run", 4)
    assert job.exit_code() == exit_codes.SUCCESS, job.log
    slots = json.loads(job.attempt.placement.read_text(encoding="utf-8"))
    expected = [(node, gpu) for node in slurm4.node_names for gpu in (0, 1)]
    assert [(slot["host"], slot["gpu"]) for slot in slots] == expected
    assert [slot["rank"] for slot in slots] == list(range(8))
    assert processes_of("slurm-run") == []


def test_a_signal_to_the_step_stops_the_attempt_in_order(slurm4: RehearsalCluster, folder: Path) -> None:
    job = SlurmJob.submit(slurm4, folder / "run", 4)
    job.wait(lambda: job.started("node04-ray"), 60)
    asked = time.monotonic()
    # Without --batch this reaches the tasks and, where Slurm tracks by /proc, every child of theirs.
    slurm4.run(["scancel", "--signal=USR1", f"{job.job_id}.1"], check=True)
    assert job.exit_code() == exit_codes.STOP_REQUESTED, job.log
    assert time.monotonic() - asked < 15
    assert "SIGUSR1" in job.outcome["reason"]
    assert processes_of("slurm-run") == []


def test_a_node_that_loses_power_during_the_bring_up_is_named_within_a_minute(
    make_cluster: Callable[..., RehearsalCluster], namespaces: None
) -> None:
    cluster = make_cluster(nodes=4, kind=Kind.NAMESPACE, slurmd_timeout_s=120)
    job = SlurmJob.submit(cluster, cluster.shared_dir / "run", 4)
    job.wait(lambda: job.started("node03-ray"), 60)
    # Off the network first: a machine without power closes no connection, so only its silence tells.
    cluster.partition("node03", up=False)
    cluster.power_off("node03")
    off = time.monotonic()
    job.wait(job.attempt.outcome.exists, 60)
    assert time.monotonic() - off < 60
    assert job.outcome["lost_nodes"] == ["node03"]
    assert job.outcome["exit_code"] == exit_codes.NODE_LOST
    assert "silent for" in job.outcome["reason"]


def test_sixteen_nodes_come_up_and_are_placed(slurm16: RehearsalCluster) -> None:
    job = SlurmJob.submit(slurm16, slurm16.shared_dir / "run16", 16, "hosts.bring_up_timeout_s=180")
    assert job.exit_code(200) == exit_codes.SUCCESS, job.log
    slots = json.loads(job.attempt.placement.read_text(encoding="utf-8"))
    assert [slot["host"] for slot in slots[::2]] == slurm16.node_names
    assert processes_of("slurm-run16") == []
