"""A private cluster from up to down, for both kinds of nodes."""

from __future__ import annotations

import concurrent.futures
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.rehearsal.layout import Layout
from r1hpc.rehearsal.lifecycle import take_down
from r1hpc.rehearsal.spec import ClusterSpec, Kind
from tests.conftest import ClusterFactory

pytestmark = pytest.mark.slurm

HostState = Callable[[], dict[str, str]]
NothingLeft = Callable[[Path], None]
WaitFor = Callable[[Callable[[], object], float], None]

both_kinds = pytest.mark.parametrize("kind", [Kind.LOOPBACK, pytest.param(Kind.NAMESPACE, marks=pytest.mark.ns)])


@both_kinds
def test_every_node_runs_a_task_and_down_leaves_the_host_as_it_was(
    kind: Kind, make_cluster: ClusterFactory, host_state: HostState, nothing_left: NothingLeft
) -> None:
    before = host_state()
    cluster = make_cluster(nodes=3, kind=kind)
    ran = cluster.run(["srun", "-N3", "--label", "sh", "-c", "echo $SLURMD_NODENAME"], check=True)
    assert sorted(ran.stdout.split("\n")) == ["", "0: node01", "1: node02", "2: node03"]
    assert cluster.up_s < 30
    # A job is running, with a process that left its session and its environment.
    cluster.run(["sbatch", "-N3", "-o", "/dev/null", "--wrap", "srun env -i setsid sleep 300"], check=True)
    cluster.down()
    nothing_left(cluster.spec.directory)
    assert host_state() == before


@both_kinds
def test_gpus_of_a_node_are_handed_out(kind: Kind, make_cluster: ClusterFactory) -> None:
    cluster = make_cluster(nodes=2, kind=kind)
    ran = cluster.run(["srun", "-N2", "--gpus-per-node=8", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES"], check=True)
    assert ran.stdout == "0,1,2,3,4,5,6,7\n" * 2
    refused = cluster.run(["srun", "-N1", "--gpus-per-node=9", "true"])
    assert refused.returncode != 0
    assert "Requested node configuration is not available" in refused.stderr


@pytest.mark.ns
def test_namespace_nodes_share_nothing_but_files(slurm4: RehearsalCluster, wait_for: WaitFor) -> None:
    program = "hostname; ls /tmp /dev/shm | wc -l; ls -d /proc/[0-9]* | wc -l; touch /tmp/mine /dev/shm/mine"
    out = slurm4.shared_dir / "private"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for _ in range(2):  # the second time every node finds its own two files, and no one else's
        script = f"({program}) > {out}/$SLURMD_NODENAME"
        slurm4.run(["srun", "-N4", "sh", "-c", script], check=True)
    found = {path.name: path.read_text().split() for path in out.iterdir()}
    assert sorted(found) == slurm4.node_names
    for node, (hostname, *_, processes) in found.items():
        assert hostname == node
        assert int(processes) < 20  # of its own process namespace, not of the host
    resolved = slurm4.run(["srun", "-N1", "-w", "node03", "getent", "hosts", "node02"], check=True)
    assert resolved.stdout.split() == ["10.77.0.12", "node02"]


@pytest.mark.ns
def test_nodes_and_clients_have_no_way_out(slurm4: RehearsalCluster) -> None:
    for place in ([], ["srun", "-N1", "-w", "node02"]):
        assert slurm4.run([*place, "ip", "route", "show", "default"], check=True).stdout == ""
        # 198.51.100.0/24 is set aside for documentation; without a route the kernel sends nothing.
        attempt = slurm4.run([*place, "ip", "route", "get", "198.51.100.1"])
        assert "Network is unreachable" in attempt.stderr


@pytest.mark.ns
def test_shared_directory_under_tmp_is_seen_on_nodes(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    if not tmp_path.is_relative_to("/tmp"):
        pytest.skip(f"pytest's directory {tmp_path} is not under /tmp")
    cluster = make_cluster(nodes=1, kind=Kind.NAMESPACE, share=(tmp_path,))
    cluster.run(["srun", "sh", "-c", f"echo from node > {tmp_path}/file"], check=True)
    assert (tmp_path / "file").read_text() == "from node\n"


def test_up_of_the_same_spec_takes_the_running_cluster(make_cluster: ClusterFactory) -> None:
    cluster = make_cluster(nodes=1, kind=Kind.LOOPBACK)
    again = RehearsalCluster.up(cluster.spec)
    assert again.processes().keys() == cluster.processes().keys()
    with pytest.raises(RehearsalError, match=r"is up in .* with another spec: nodes: 1 -> 2; take it down first"):
        RehearsalCluster.up(ClusterSpec(**cluster.spec.to_json() | {"directory": cluster.spec.directory, "nodes": 2}))


def test_cluster_that_lost_its_controller_is_made_anew(
    make_cluster: ClusterFactory, wait_for: Callable[[Callable[[], object], float], None]
) -> None:
    cluster = make_cluster(nodes=1, kind=Kind.LOOPBACK)
    old = cluster.processes()
    controller = next(pid for pid, stat in old.items() if stat.name == "slurmctld")
    cluster.run(["kill", "-9", str(controller)], check=True)
    wait_for(lambda: controller not in cluster.processes(), 5)
    with pytest.raises(RehearsalError, match="no private cluster is up"):
        RehearsalCluster.attach(cluster.spec.directory)
    anew = RehearsalCluster.up(cluster.spec)
    assert anew.node_states() == {"node01": "idle"}
    assert old.keys().isdisjoint(anew.processes())


def test_attach_reaches_a_cluster_that_another_process_started(slurm4: RehearsalCluster) -> None:
    attached = RehearsalCluster.attach(slurm4.spec.directory)
    assert attached.node_states() == slurm4.node_states()
    assert attached.name == slurm4.name


def test_three_clusters_live_on_one_host_at_once(make_cluster: ClusterFactory) -> None:
    with concurrent.futures.ThreadPoolExecutor() as pool:
        clusters = list(pool.map(lambda nodes: make_cluster(nodes=nodes, kind=Kind.LOOPBACK), [1, 2, 3]))
    for nodes, cluster in enumerate(clusters, start=1):
        config = cluster.run(["scontrol", "show", "config"], check=True).stdout
        assert f"= {cluster.name}\n" in config
        assert list(cluster.node_states()) == cluster.node_names == [f"node{i + 1:02d}" for i in range(nodes)]


def test_jobs_of_a_foreign_cluster_are_not_cancelled(make_cluster: ClusterFactory) -> None:
    mine, foreign = (make_cluster(nodes=1, kind=Kind.LOOPBACK) for _ in range(2))
    submitted = foreign.run(["sbatch", "--parsable", "--hold", "-o", "/dev/null", "--wrap", "true"], check=True)
    job = submitted.stdout.strip()
    # As when SLURM_CONF leads to the site's own cluster.
    shutil.copy(Layout(foreign.spec.directory).slurm_conf, Layout(mine.spec.directory).slurm_conf)
    for cancel in (lambda: mine.cancel(job), lambda: mine.run(["scancel", "--user=root"])):
        with pytest.raises(RehearsalError, match=f"answers is '{foreign.name}', not '{mine.name}'"):
            cancel()
    assert foreign.run(["squeue", "--noheader", "--format=%i %T"], check=True).stdout.split() == [job, "PENDING"]
    foreign.cancel(job)
    assert foreign.run(["squeue", "--noheader"], check=True).stdout == ""


def test_client_does_not_see_an_enclosing_job(slurm4: RehearsalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm/slurm.conf")
    monkeypatch.setenv("SINFO_FORMAT", "%n")
    names = slurm4.run(["env"], check=True, env={"SLURM_HINT": "nomultithread"}).stdout
    slurm_variables = sorted(line for line in names.splitlines() if line.startswith(("SLURM", "SINFO")))
    assert slurm_variables == [f"SLURM_CONF={slurm4.spec.directory}/etc/slurm.conf", "SLURM_HINT=nomultithread"]


def test_client_that_does_not_end_is_named(slurm4: RehearsalCluster) -> None:
    with pytest.raises(RehearsalError, match=r"sleep 60: no end after 0\.2 s"):
        slurm4.run(["sleep", "60"], timeout_s=0.2)


def test_started_client_has_the_commands_own_pid(slurm4: RehearsalCluster) -> None:
    process = slurm4.popen(["sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"], stdout=-1)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(timeout=10) == 9


def test_daemon_that_refuses_to_start_is_quoted_and_nothing_stays(
    cluster_base: Path, host_state: HostState, nothing_left: NothingLeft
) -> None:
    directory = cluster_base / "refused"
    before = host_state()
    # Slurm keeps this in 16 bits: a real refusal of a real slurmctld.
    with pytest.raises(
        RehearsalError, match=r"(?s)slurmctld ended with status .*last lines of .*/slurmctld\..*SlurmdTimeout"
    ):
        RehearsalCluster.up(ClusterSpec(directory=directory, nodes=1, slurmd_timeout_s=70_000))
    nothing_left(directory)
    assert host_state() == before


def test_first_job_id_differs_between_clusters(make_cluster: ClusterFactory, slurm4: RehearsalCluster) -> None:
    def first_job(cluster: RehearsalCluster) -> int:
        config = cluster.run(["scontrol", "show", "config"], check=True).stdout
        return int(next(line for line in config.splitlines() if line.startswith("FirstJobId")).split()[-1])

    assert first_job(make_cluster(nodes=1, kind=Kind.LOOPBACK)) > first_job(slurm4) > 1


@pytest.fixture
def stopped(cluster_base: Path) -> Iterator[Path]:
    directory = cluster_base / "stopped"
    yield directory
    take_down(Layout.at(directory))
    shutil.rmtree(directory, ignore_errors=True)


def test_down_without_a_cluster_is_a_clean_no_op(stopped: Path) -> None:
    assert not take_down(Layout.at(stopped))
    stopped.mkdir()
    assert not take_down(Layout.at(stopped))
    assert list(stopped.iterdir()) == []
