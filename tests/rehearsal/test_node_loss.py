"""Losing nodes on purpose: Slurm notices by itself and requeues what ran there."""

from __future__ import annotations

import collections
from collections.abc import Callable

import pytest

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.rehearsal.spec import Kind
from tests.conftest import ClusterFactory

pytestmark = pytest.mark.slurm

WaitFor = Callable[[Callable[[], object], float], None]

QUICK_LOSS = {"slurmd_timeout_s": 5, "message_timeout_s": 3, "cred_expire_s": 5}


def in_service(state: str) -> bool:
    return state in ("idle", "mixed", "allocated")


def submit(cluster: RehearsalCluster, nodes: int, wait_for: WaitFor) -> str:
    """Start a job that writes a line from every node when it (re)starts, and stays."""
    program = "echo started on $SLURMD_NODENAME; setsid sleep 300"
    words = ["sbatch", "--parsable", f"-N{nodes}", "--requeue", "--open-mode=append", "-o", cluster.shared_dir / "%j"]
    job = cluster.run([*map(str, words), "--wrap", f"srun sh -c '{program}'"], check=True).stdout.strip()
    wait_for(lambda: len(started(cluster, job)) == nodes, 30)
    return job


def started(cluster: RehearsalCluster, job: str) -> list[str]:
    output = cluster.shared_dir / job
    lines = output.read_text().splitlines() if output.exists() else []
    return [line.split()[-1] for line in lines if line.startswith("started on")]


def processes_by_name(cluster: RehearsalCluster) -> collections.Counter[str]:
    return collections.Counter(stat.name for stat in cluster.processes().values())


def restarts(cluster: RehearsalCluster, job: str) -> int:
    shown = cluster.run(["scontrol", "show", "job", job], check=True).stdout
    return int(shown.partition("Restarts=")[2].split()[0])


@pytest.mark.ns
def test_slurm_misses_a_node_without_power_and_one_cut_off(make_cluster: ClusterFactory, wait_for: WaitFor) -> None:
    """One test for both, since most of it is the time that Slurm takes to notice."""
    cluster = make_cluster(nodes=4, kind=Kind.NAMESPACE, **QUICK_LOSS)
    job = submit(cluster, 2, wait_for)
    assert sorted(started(cluster, job)) == ["node01", "node02"]
    cluster.power_off("node02")
    cluster.partition("node03", up=False)
    reach_node03 = ["timeout", "1", "bash", "-c", "echo > /dev/tcp/node03/6820"]
    assert cluster.run(reach_node03).returncode != 0
    # The star marks a node that does not answer.
    down = {"node02": "down*", "node03": "down*"}
    wait_for(lambda: down.items() <= cluster.node_states().items(), 60)
    assert processes_by_name(cluster)["slurmd"] == 3, "the node that is cut off goes on running"
    wait_for(lambda: len(started(cluster, job)) == 4, 60)
    assert sorted(started(cluster, job)[2:]) == ["node01", "node04"]
    assert restarts(cluster, job) == 1
    cluster.partition("node03", up=True)
    assert cluster.run(reach_node03).returncode == 0
    cluster.power_on("node02")
    cluster.wait_nodes(in_service, ["node02", "node03"], 60)


@pytest.mark.parametrize("kind", [Kind.LOOPBACK, pytest.param(Kind.NAMESPACE, marks=pytest.mark.ns)])
def test_power_takes_all_of_one_node_at_once_and_gives_it_back(
    kind: Kind, make_cluster: ClusterFactory, wait_for: WaitFor
) -> None:
    cluster = make_cluster(nodes=2, kind=kind)
    idle = processes_by_name(cluster)["sleep"]  # the cluster's own
    submit(cluster, 2, wait_for)
    wait_for(lambda: processes_by_name(cluster)["sleep"] == idle + 2, 30)
    before = processes_by_name(cluster)
    cluster.power_off("node02")
    after = processes_by_name(cluster)
    # Of a node's tasks one has left its session, and with it what Slurm itself would kill on loopback.
    assert {name: before[name] - after[name] for name in ("slurmd", "sleep")} == {"slurmd": 1, "sleep": 1}
    assert after["slurmctld"] == before["slurmctld"] == 1
    cluster.power_off("node02")  # no power to take
    cluster.power_on("node02")
    cluster.wait_nodes(in_service, ["node02"], 30)
    # Slurm may not have missed the node, and then it is in service before its slurmd has its name.
    wait_for(lambda: processes_by_name(cluster)["slurmd"] == 2, 30)


def test_loopback_nodes_cannot_be_cut_off(loopback4: RehearsalCluster) -> None:
    with pytest.raises(RehearsalError, match="partition needs --kind namespace"):
        loopback4.partition("node01", up=False)


def test_unknown_node_is_named_with_the_known_ones(loopback4: RehearsalCluster) -> None:
    with pytest.raises(RehearsalError, match="no node 'node09': the cluster has node01, node02, node03, node04"):
        loopback4.power_off("node09")


def test_node_that_is_on_is_not_started_twice(loopback4: RehearsalCluster) -> None:
    with pytest.raises(RehearsalError, match="node01 is powered on"):
        loopback4.power_on("node01")


def test_wait_for_nodes_names_the_states_at_its_deadline(loopback4: RehearsalCluster) -> None:
    with pytest.raises(RehearsalError, match=r"after 0 s still: \{'node02': 'idle'\}"):
        loopback4.wait_nodes(lambda state: state == "down", ["node02"], 0)


def test_job_of_low_is_requeued_for_one_of_high(make_cluster: ClusterFactory, wait_for: WaitFor) -> None:
    cluster = make_cluster(nodes=1, kind=Kind.LOOPBACK, grace_s=0, kill_wait_s=1, cred_expire_s=5)
    job = submit(cluster, 1, wait_for)
    urgent = cluster.run(["srun", "-p", "high", "--exclusive", "echo", "urgent"], check=True, timeout_s=60)
    assert urgent.stdout == "urgent\n"
    wait_for(lambda: len(started(cluster, job)) == 2, 60)
    assert restarts(cluster, job) == 1
