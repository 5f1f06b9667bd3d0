"""`up` stopped at any moment: the host's network is untouched, `down` cleans up, and `up` works again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.rehearsal.layout import Layout
from r1hpc.rehearsal.lifecycle import take_down
from r1hpc.rehearsal.processes import cluster_processes, network_namespace
from r1hpc.rehearsal.spec import ClusterSpec, Kind

pytestmark = pytest.mark.slurm

HostState = Callable[[], dict[str, str]]
NothingLeft = Callable[[Path], None]

# Brings a cluster up in a process of its own, and kills that process after a step.
UP_AND_DIE = """
import os, signal, sys
from pathlib import Path
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.rehearsal.spec import ClusterSpec

def die_after(step):
    if step == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

RehearsalCluster.up(ClusterSpec(directory=Path(sys.argv[1]), kind=sys.argv[2], nodes=2), die_after)
"""

LOOPBACK_STEPS = ["files", "munged", "slurmctld", "nodes", "up"]
NAMESPACE_STEPS = ["files", "namespace", "bridge", "munged", "slurmctld", "nodes", "up"]


@pytest.fixture
def directory(cluster_base: Path) -> Iterator[Path]:
    path = cluster_base / "interrupted"
    yield path
    take_down(Layout.at(path))
    shutil.rmtree(path, ignore_errors=True)


def namespaces_of(directory: Path, held: ExitStack) -> set[str | None]:
    """The namespaces of a cluster; held open, so that no other cluster's get their numbers meanwhile."""
    pids = cluster_processes(Layout.at(directory))
    for pid in pids:
        held.callback(os.close, os.open(f"/proc/{pid}/ns/net", os.O_RDONLY))
    return {network_namespace(pid) for pid in pids} - {network_namespace(), None}


def namespaces_in_use() -> set[str | None]:
    return {network_namespace(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}


@pytest.mark.parametrize(
    ("kind", "step"),
    [("loopback", step) for step in LOOPBACK_STEPS]
    + [pytest.param("namespace", step, marks=pytest.mark.ns) for step in NAMESPACE_STEPS],
)
def test_up_killed_after_a_step_is_cleaned_by_down(
    kind: str, step: str, directory: Path, host_state: HostState, nothing_left: NothingLeft
) -> None:
    before = host_state()
    killed = subprocess.run([sys.executable, "-c", UP_AND_DIE, str(directory), kind, step], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert bool(cluster_processes(Layout.at(directory))) == (step != "files")
    with ExitStack() as held:
        made = namespaces_of(directory, held)
        assert bool(made) == (kind == "namespace" and step != "files")
        assert host_state() == before, "not even a half-made cluster shows on the host"
        assert take_down(Layout.at(directory))
        nothing_left(directory)
        assert made.isdisjoint(namespaces_in_use())
    assert host_state() == before


@pytest.mark.parametrize("kind", [Kind.LOOPBACK, pytest.param(Kind.NAMESPACE, marks=pytest.mark.ns)])
def test_up_works_after_a_killed_up_even_without_down(kind: Kind, directory: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", UP_AND_DIE, str(directory), kind, "slurmctld"], timeout=60)
    assert killed.returncode == -signal.SIGKILL
    cluster = RehearsalCluster.up(ClusterSpec(directory=directory, kind=kind, nodes=2))
    assert cluster.run(["srun", "-N2", "echo", "here"], check=True).stdout == "here\nhere\n"
    cluster.down()


@pytest.mark.parametrize("after_s", [0.08, 0.12, 0.16, 0.2, 0.25, 0.3, 0.4])
def test_up_killed_at_any_moment_is_cleaned_by_down(
    after_s: float, directory: Path, host_state: HostState, nothing_left: NothingLeft
) -> None:
    before = host_state()
    command = [sys.executable, "-m", "r1hpc.rehearsal", "up", "--dir", str(directory), "--nodes", "4"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        time.sleep(after_s)
        process.kill()
    take_down(Layout.at(directory))
    directory.mkdir(exist_ok=True)  # it may have been killed before it made that
    nothing_left(directory)
    assert host_state() == before


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_up_that_is_asked_to_stop_cleans_up_itself(
    stop: signal.Signals, directory: Path, host_state: HostState, nothing_left: NothingLeft
) -> None:
    before = host_state()
    command = [sys.executable, "-m", "r1hpc.rehearsal", "up", "--dir", str(directory), "--nodes", "16"]
    for _ in range(5):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            while not Layout.at(directory).munge_socket.exists():
                assert process.poll() is None, "up ended before it could be stopped"
                time.sleep(0.005)
            process.send_signal(stop)
            _, errors = process.communicate(timeout=30)
        if process.returncode != 0:
            break
        # It was up before the signal came: again.
        subprocess.run([*command[:3], "down", "--dir", str(directory)], check=True, stdout=subprocess.DEVNULL)
    assert process.returncode == 128 + stop
    assert "Traceback" not in errors
    nothing_left(directory)
    assert host_state() == before


def test_down_that_was_killed_is_finished_by_the_next(directory: Path, nothing_left: NothingLeft) -> None:
    cluster = RehearsalCluster.up(ClusterSpec(directory=directory, kind=Kind.LOOPBACK, nodes=4))
    for after_s in (0.1, 0.15, 0.2):
        command = [sys.executable, "-m", "r1hpc.rehearsal", "down", "--dir", str(directory)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            time.sleep(after_s)
            process.kill()
    cluster.down()
    nothing_left(directory)


def test_record_lost_does_not_hide_the_cluster(directory: Path, nothing_left: NothingLeft) -> None:
    RehearsalCluster.up(ClusterSpec(directory=directory, kind=Kind.LOOPBACK, nodes=1))
    os.unlink(Layout.at(directory).record)
    assert take_down(Layout.at(directory))
    nothing_left(directory)
