"""The verdict over all nodes: pure functions of their reports and of what the plan needs."""

from __future__ import annotations

import ipaddress
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

from r1hpc.cluster.facts import NodeFacts
from r1hpc.config.cluster import HostsConfig

GIB = 2**30
_CLOCK_WARNING_S = 2.0
_CLOCK_LIMIT_S = 30.0
_GPU_MEMORY_SHARE = 0.95
"""What NVML reports of a GPU sold with 80 GB; reserved memory differs a little by driver."""
_MIN_FREE = 1 * GIB


@dataclass(frozen=True)
class Requirements:
    """What every node must have."""

    device: str
    gpus: int
    gpu_memory_bytes: float
    host_memory_bytes: float
    """Available, for the stage that needs most."""
    shm_bytes: float
    disk_bytes: float
    """On the file system of the run, for all that the plan writes."""
    nofile: int
    locked_memory: bool
    """Whether it must be unlimited: to register it for RDMA between nodes, which CUDA's own pinning does not need."""
    fabric_interface: str | None = None

    @classmethod
    def of(cls, hosts: HostsConfig, host_bytes: float | None, disk_bytes: float | None) -> Requirements:
        """From the configuration and, where there is one, the plan's worst node and disk needs."""
        on_fabric = hosts.device == "cuda" and hosts.num_nodes > 1
        return cls(
            device=hosts.device,
            gpus=hosts.gpus_per_node,
            gpu_memory_bytes=hosts.gpu_memory_gib * GIB * _GPU_MEMORY_SHARE,
            host_memory_bytes=hosts.host_memory_gib * GIB if host_bytes is None else host_bytes,
            shm_bytes=hosts.object_store_gib * GIB,
            disk_bytes=disk_bytes or 0,
            nofile=65536 if on_fabric else 4096,
            locked_memory=on_fabric,
            fabric_interface=hosts.fabric_interface,
        )


class Check(StrEnum):
    """What is looked at on every node, in words."""

    REPORT = "report"
    GPUS = "number of GPUs"
    GPU_MEMORY = "memory of a GPU"
    GPUS_FREE = "GPUs that nobody uses"
    MEMORY = "memory"
    SHARED_MEMORY = "shared memory"
    TEMPORARY = "temporary directory"
    RUN_DIRECTORY = "room in the run directory"
    SAME_FILES = "run directory that all see alike"
    OPEN_FILES = "limit of open files"
    LOCKED_MEMORY = "limit of locked memory"
    INTERFACE = "interface of the fabric"
    OTHER_RUNS = "no other run"
    ADDRESS = "address"
    VERSIONS = "versions"
    CLOCK = "clock"


LASTING = frozenset(
    {
        Check.GPUS,
        Check.GPU_MEMORY,
        Check.OPEN_FILES,
        Check.LOCKED_MEMORY,
        Check.INTERFACE,
        Check.ADDRESS,
        Check.VERSIONS,
    }
)
"""What most nodes lack of these, no other attempt will find there: a person has to mend it."""


@dataclass(frozen=True)
class Finding:
    """Something wrong with a node."""

    node: str
    check: Check
    reason: str
    fix: str
    level: Literal["bad", "warning"] = "bad"
    """bad keeps the node out; a warning is only told."""


def absent(node: str, waited_s: float) -> Finding:
    """A node that has written no report."""
    return Finding(
        node,
        Check.REPORT,
        f"no report within {waited_s:.0f} s",
        "it is down, or does not see the run directory: look at sinfo -R and at its mounts",
    )


def judge(reports: Sequence[NodeFacts], clocks: Mapping[str, float], needs: Requirements) -> list[Finding]:
    """Everything wrong with these nodes. `clocks`: what each read at the same moment, as far as known."""
    findings = [finding for facts in reports for finding in _judge_node(facts, needs)]
    return findings + list(_judge_versions(reports)) + list(_judge_clocks(clocks))


def _judge_node(facts: NodeFacts, needs: Requirements) -> Iterator[Finding]:
    yield from _judge_gpus(facts, needs)
    yield from _judge_memory(facts, needs)
    if facts.nofile_hard != -1 and facts.nofile_hard < needs.nofile:
        yield Finding(
            facts.node,
            Check.OPEN_FILES,
            f"open files are limited to {facts.nofile_hard}, needed are {needs.nofile}",
            "raise nofile in /etc/security/limits.conf, or LimitNOFILE of slurmd",
        )
    if needs.locked_memory and facts.memlock_hard != -1:
        yield Finding(
            facts.node,
            Check.LOCKED_MEMORY,
            f"locked memory is limited to {facts.memlock_hard / GIB:.1f} GiB: no RDMA",
            "set memlock unlimited, and PropagateResourceLimitsExcept=MEMLOCK in slurm.conf",
        )
    if needs.fabric_interface and not facts.addresses.get(needs.fabric_interface):
        there = ", ".join(sorted(name for name, addresses in facts.addresses.items() if addresses))
        yield Finding(
            facts.node,
            Check.INTERFACE,
            f"interface {needs.fabric_interface} has no address; there are {there}",
            "bring the link up, or set hosts.fabric_interface",
        )
    for process in facts.foreign_processes:
        level: Literal["bad", "warning"] = "bad" if needs.device == "cuda" else "warning"
        yield Finding(
            facts.node, Check.OTHER_RUNS, f"another run is still there: {process}", "end it by its pid", level
        )


def misplaced(facts: NodeFacts, address: str) -> list[Finding]:
    """A finding when a node reports from a machine that does not have its address. Names are not looked up."""
    local = sorted({found for found_there in facts.addresses.values() for found in found_there})
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return []
    # Parsed: an IPv6 address has many spellings.
    if parsed.is_loopback or parsed in map(ipaddress.ip_address, local):
        return []
    return [
        Finding(
            facts.node,
            Check.ADDRESS,
            f"its address is {address}, but {facts.hostname}, which answers for it, has {', '.join(local)}",
            "one process a host, in the hostfile's order: --map-by ppr:1:node (Open MPI), -ppn 1 (MPICH)",
        )
    ]


def _judge_gpus(facts: NodeFacts, needs: Requirements) -> Iterator[Finding]:
    if needs.device == "cpu":
        if facts.logical_slots is not None and facts.logical_slots < needs.gpus:
            yield Finding(
                facts.node,
                Check.GPUS,
                f"{facts.logical_slots} GPU slots given, hosts.gpus_per_node = {needs.gpus}",
                "ask for them: slurm.gpus",
            )
        return
    if facts.gpus.visible < needs.gpus:
        yield Finding(
            facts.node,
            Check.GPUS,
            f"{facts.gpus.visible} of {needs.gpus} GPUs are visible",
            "look at nvidia-smi and dmesg (Xid) there; is slurm.gpus as this site wants it?",
        )
    for index, memory in enumerate(facts.gpus.memory_bytes):
        if memory < needs.gpu_memory_bytes:
            yield Finding(
                facts.node,
                Check.GPU_MEMORY,
                f"GPU {index} ({facts.gpus.names[index]}) has {memory / GIB:.0f} GiB, "
                f"needed are {needs.gpu_memory_bytes / GIB:.0f}",
                "set slurm.constraint or slurm.gpu_type to the GPUs that were planned for, or hosts.gpu_memory_gib",
            )
    for holder in facts.gpus.foreign:
        yield Finding(
            facts.node,
            Check.GPUS_FREE,
            f"GPU memory is held before the run starts: {holder}",
            "end that process by its pid",
        )


def _judge_memory(facts: NodeFacts, needs: Requirements) -> Iterator[Finding]:
    if facts.memory_available < needs.host_memory_bytes:
        yield Finding(
            facts.node,
            Check.MEMORY,
            f"{facts.memory_available / GIB:.0f} GiB of memory available of {facts.memory_total / GIB:.0f}, "
            f"needed are {needs.host_memory_bytes / GIB:.0f}",
            "see who holds it (ps, /dev/shm); ask for all of it (--mem=0)",
        )
    if facts.shm_free < needs.shm_bytes:
        yield Finding(
            facts.node,
            Check.SHARED_MEMORY,
            f"/dev/shm has {facts.shm_free / GIB:.1f} GiB free, hosts.object_store_gib = {needs.shm_bytes / GIB:g}",
            "remove what lies in /dev/shm, or lower hosts.object_store_gib",
        )
    if facts.temp_free < _MIN_FREE:
        yield Finding(
            facts.node,
            Check.TEMPORARY,
            f"the temporary directory has {facts.temp_free / GIB:.1f} GiB free",
            "clean it, or set TMPDIR",
        )
    if facts.run_dir_free < max(needs.disk_bytes, _MIN_FREE):
        # Earlier stages may have written most of it already, so only an empty disk keeps the run from starting.
        yield Finding(
            facts.node,
            Check.RUN_DIRECTORY,
            f"the run directory has {facts.run_dir_free / GIB:.1f} GiB free, "
            f"the plan writes {needs.disk_bytes / GIB:.1f} in all",
            "free space, or set run.root and ckpt paths to another file system",
            "bad" if facts.run_dir_free < _MIN_FREE else "warning",
        )


def _judge_versions(reports: Sequence[NodeFacts]) -> Iterator[Finding]:
    """Every node must run what most run."""
    versions = {facts.node: {"driver": facts.gpus.driver, **facts.versions} for facts in reports}
    for label in sorted({label for node in versions.values() for label in node}):
        usual, _ = Counter(node.get(label) for node in versions.values()).most_common(1)[0]
        for name, node in versions.items():
            if node.get(label) != usual:
                level: Literal["bad", "warning"] = "warning" if label == "kernel" else "bad"
                reason = f"{label} is {node.get(label)}, elsewhere {usual}"
                yield Finding(name, Check.VERSIONS, reason, "install the same everywhere, or exclude it", level)


def _judge_clocks(clocks: Mapping[str, float]) -> Iterator[Finding]:
    if not clocks:
        return
    middle = statistics.median(clocks.values())
    for node, clock in clocks.items():
        off = clock - middle
        if abs(off) > _CLOCK_WARNING_S:
            level: Literal["bad", "warning"] = "bad" if abs(off) > _CLOCK_LIMIT_S else "warning"
            yield Finding(
                node, Check.CLOCK, f"its clock is {off:+.1f} s off", "start its NTP client (chronyc tracking)", level
            )
