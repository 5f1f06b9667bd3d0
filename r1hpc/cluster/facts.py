"""What a node reports of itself, before it talks to any other node; rank 0 judges it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from r1hpc.cluster.gpus import GpuFacts, gpu_facts, logical_slots
from r1hpc.publish import publish_json

_PACKAGES = ("r1hpc", "torch", "ray", "sglang", "megatron-core", "transformers", "mpi4py")
_POLL_S = 0.1


@dataclass(frozen=True)
class NodeFacts:
    """One node's report. Sizes in bytes, times in Unix seconds."""

    node: str
    hostname: str
    machine: str
    """The kernel's boot id: equal for hosts that share a machine."""
    cpus: int
    """That this process may use."""
    canary: str
    """Random: proves that a file read elsewhere is this node's file of this attempt."""
    clock: float
    addresses: Mapping[str, Sequence[str]]
    """IP addresses by interface."""
    gpus: GpuFacts
    logical_slots: int | None
    memory_total: int
    memory_available: int
    shm_free: int
    temp_free: int
    run_dir_free: int
    nofile_hard: int
    memlock_hard: int
    """-1 is unlimited."""
    versions: Mapping[str, str]
    busy_ports: Sequence[int] = ()
    """Local TCP ports that somebody uses."""
    foreign_processes: Sequence[str] = field(default_factory=tuple)
    """Processes of other runs."""


def collect(
    node: str, run_dir: Path, environment: Mapping[str, str], scheduler_gpus: int | None, foreign: Sequence[str]
) -> NodeFacts:
    """This node's report. Imports nothing that it reports the version of."""
    memory = psutil.virtual_memory()
    return NodeFacts(
        node=node,
        hostname=socket.gethostname(),
        machine=Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        cpus=len(os.sched_getaffinity(0)),
        canary=secrets.token_hex(16),
        clock=time.time(),
        addresses=_addresses(),
        gpus=gpu_facts(environment),
        logical_slots=logical_slots(environment, scheduler_gpus),
        memory_total=memory.total,
        memory_available=memory.available,
        shm_free=shutil.disk_usage("/dev/shm").free,
        temp_free=shutil.disk_usage(tempfile.gettempdir()).free,
        run_dir_free=shutil.disk_usage(run_dir).free,
        nofile_hard=resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        memlock_hard=resource.getrlimit(resource.RLIMIT_MEMLOCK)[1],
        versions={"python": platform.python_version(), "kernel": os.uname().release} | _versions(),
        busy_ports=_busy_ports(),
        foreign_processes=tuple(foreign),
    )


def write_facts(folder: Path, facts: NodeFacts) -> None:
    """Publish FOLDER/NODE.json."""
    publish_json(folder / f"{facts.node}.json", asdict(facts))


def read_facts(folder: Path, node: str) -> NodeFacts | None:
    """A node's report; None before it has written it."""
    try:
        record: dict[str, Any] = json.loads((folder / f"{node}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return NodeFacts(**record | {"gpus": GpuFacts(**record["gpus"])})


def wait_for_facts(folder: Path, nodes: Sequence[str], deadline: float) -> dict[str, NodeFacts]:
    """The reports of `nodes`, of as many as have come when `deadline` (time.monotonic) is over."""
    reports: dict[str, NodeFacts] = {}
    while True:
        for node in nodes:
            if node not in reports and (facts := read_facts(folder, node)) is not None:
                reports[node] = facts
        if len(reports) == len(nodes) or time.monotonic() > deadline:
            return reports
        time.sleep(_POLL_S)


def _busy_ports() -> tuple[int, ...]:
    """Ports that cannot be bound now. A socket in TIME_WAIT holds none: listeners are started with SO_REUSEADDR."""
    sockets = psutil.net_connections("tcp")
    return tuple(sorted({own.laddr.port for own in sockets if own.laddr and own.status != psutil.CONN_TIME_WAIT}))


def _addresses() -> dict[str, list[str]]:
    wanted = (socket.AF_INET, socket.AF_INET6)
    found = psutil.net_if_addrs().items()
    return {
        name: [entry.address.partition("%")[0] for entry in entries if entry.family in wanted]
        for name, entries in found
    }


def _versions() -> dict[str, str]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    return versions
