"""Fixtures of every test: private Slurm clusters, started when first asked for and ended with the test run."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.rehearsal.layout import Layout
from r1hpc.rehearsal.lifecycle import resolve_kind, take_down
from r1hpc.rehearsal.spec import ClusterSpec, Kind, default_directory
from r1hpc.rehearsal.version import SLURM_PROGRAMS, missing_programs
from tests.spread import put_longest_first

# Tests are not timed: here four workers share two cores.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

ClusterFactory = Callable[..., RehearsalCluster]
"""Makes a cluster of its own for one test: `make_cluster(nodes=2, kind=Kind.LOOPBACK, grace_s=3)`."""

# Slurm's timings, short enough for tests and still told apart by them.
QUICK = {"grace_s": 5, "kill_wait_s": 3, "slurmd_timeout_s": 10, "message_timeout_s": 5, "cred_expire_s": 5}


def pytest_configure() -> None:
    """Let tests interrupt what they start, however this run was started.

    In the background of a script SIGINT is ignored, and programs inherit that. One that is caught they do not inherit;
    the run itself still lets it pass.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest begins first."""
    put_longest_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> object:
    """Tests that share a server or a cluster go to one worker, whatever --dist says."""
    from tests.group_scheduling import GroupScheduling  # its package is not wherever tests run

    return GroupScheduling(config, log)


@pytest.fixture(scope="session")
def cluster_base() -> Iterator[Path]:
    """A short directory outside /tmp for this process's clusters; those of killed test runs are taken down first."""
    parent = _writable_parent()
    parent.mkdir(parents=True, exist_ok=True)
    with open(parent / "t.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # workers of pytest-xdist begin together
        for stale in parent.glob("t-*"):
            if (match := re.fullmatch(r"t-(\d+)", stale.name)) and not Path(f"/proc/{match[1]}").exists():
                _remove_clusters(stale)
    base = parent / f"t-{os.getpid()}"
    base.mkdir(parents=True, exist_ok=True)
    yield base
    _remove_clusters(base)


@pytest.fixture(scope="session")
def slurm_installed() -> None:
    """Skip the test where there is no Slurm; fail it where R1HPC_REQUIRE_SLURM=1 says that there must be one."""
    if missing := missing_programs(SLURM_PROGRAMS):
        _skip(f"the private Slurm cannot start: not installed: {', '.join(missing)}")


@pytest.fixture(scope="session")
def namespaces(slurm_installed: None) -> None:
    """Skip the test where nodes cannot have namespaces of their own (not root, or the kernel refuses)."""
    try:
        resolve_kind(Kind.NAMESPACE)
    except RehearsalError as error:
        _skip(str(error))


@pytest.fixture(autouse=True)
def marked_needs(request: pytest.FixtureRequest) -> None:
    """Give the markers their meaning: `slurm` needs Slurm installed, `ns` needs namespaces too."""
    if request.node.get_closest_marker("ns"):
        request.getfixturevalue("namespaces")
    elif request.node.get_closest_marker("slurm"):
        request.getfixturevalue("slurm_installed")


@pytest.fixture(scope="session")
def slurm4(cluster_base: Path, slurm_installed: None) -> Iterator[RehearsalCluster]:
    """Four nodes: namespaces as root, else loopback. One for the whole run: leave it idle."""
    yield from _cluster(cluster_base / "slurm4", nodes=4)


@pytest.fixture(scope="session")
def slurm16(cluster_base: Path, slurm_installed: None) -> Iterator[RehearsalCluster]:
    """Sixteen nodes: namespaces as root, else loopback. One for the whole run: leave it idle."""
    yield from _cluster(cluster_base / "slurm16", nodes=16)


@pytest.fixture(scope="session")
def loopback4(cluster_base: Path, slurm_installed: None) -> Iterator[RehearsalCluster]:
    """Four nodes on loopback, as an ordinary user has them. One for the whole run: leave it idle."""
    yield from _cluster(cluster_base / "loopback4", nodes=4, kind=Kind.LOOPBACK)


@pytest.fixture
def make_cluster(cluster_base: Path, slurm_installed: None) -> Iterator[ClusterFactory]:
    """Make clusters for one test alone, with the fields of `ClusterSpec`; all are taken down after it."""
    made: list[Path] = []

    def make(**fields: Any) -> RehearsalCluster:
        directory = cluster_base / f"c{len(made)}"
        made.append(directory)
        return RehearsalCluster.up(ClusterSpec(directory=directory, **QUICK | fields))

    yield make
    for directory in made:
        take_down(Layout.at(directory))
        shutil.rmtree(directory, ignore_errors=True)


def _cluster(directory: Path, **fields: Any) -> Iterator[RehearsalCluster]:
    cluster = RehearsalCluster.up(ClusterSpec(directory=directory, **QUICK | fields))
    yield cluster
    cluster.down()


def _writable_parent() -> Path:
    cache = default_directory().parent
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(f"/var/tmp/r1hpc-{os.getuid()}")
    return cache


def _remove_clusters(base: Path) -> None:
    for directory in base.iterdir():
        take_down(Layout.at(directory))
    shutil.rmtree(base, ignore_errors=True)


def _skip(reason: str) -> None:
    if os.environ.get("R1HPC_REQUIRE_SLURM") == "1":
        pytest.fail(f"{reason}, and R1HPC_REQUIRE_SLURM=1 demands it")
    pytest.skip(reason)
