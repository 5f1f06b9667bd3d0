"""The hosts of an attempt, in hostfile order: the first is the head. Everyone reads them from hosts.json."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from r1hpc.errors import ClusterError
from r1hpc.publish import publish_json


@dataclass(frozen=True)
class ClusterHost:
    """One host of an attempt."""

    name: str
    """NodeName under Slurm, else as the hostfile writes it."""
    address: str
    """Where the other hosts reach it."""
    slots: int
    """GPU slots."""


@dataclass(frozen=True)
class Node:
    """One node of the allocation, as begin.json names it."""

    name: str
    address: str


def write_hosts(path: Path, hosts: Sequence[ClusterHost]) -> None:
    """Publish hosts.json."""
    publish_json(path, [asdict(host) for host in hosts])


def read_hosts(path: Path) -> list[ClusterHost]:
    """The hosts of hosts.json. Raises ClusterError when preflight has not written it."""
    try:
        return [ClusterHost(**record) for record in json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        raise ClusterError(f"{path} is missing: the preflight writes it, and it did not pass") from None


def read_nodes(begin: Path) -> list[Node]:
    """The nodes of begin.json, in the order that the scheduler gives."""
    try:
        record = json.loads(begin.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ClusterError(f"{begin} is missing: every attempt begins by writing it") from None
    return [Node(node["name"], node["address"]) for node in record["nodes"]]


def addresses_of(name: str) -> list[str]:
    """The addresses that the system's resolver gives for a name; [] when it knows none."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except socket.gaierror:
        return []
    return [str(entry[4][0]) for entry in found]


def in_hostfile_order(
    nodes: Sequence[Node], wanted: Sequence[str], resolve: Callable[[str], Sequence[str]] = addresses_of
) -> list[Node]:
    """The nodes in the order of a hostfile's names; lines that match no node are spares.

    A name is a NodeName or an address; only when that leaves nodes over are the remaining names resolved.
    Raises ClusterError naming nodes that no line names: the job is on hosts that nobody asked for.
    """
    by_name = {name: node for node in nodes for name in (node.address, node.name)}
    matched = {name: by_name[name] for name in wanted if name in by_name}
    if set(nodes) - set(matched.values()):
        for name in [name for name in wanted if name not in matched]:
            addresses = resolve(name)
            found = next((node for node in nodes if node.address in addresses), None)
            if found is not None:
                matched[name] = found
    ordered = list(dict.fromkeys(matched[name] for name in wanted if name in matched))
    strangers = [f"{node.name} ({node.address})" for node in nodes if node not in ordered]
    if strangers:
        raise ClusterError(
            f"the job has nodes that the hostfile does not name: {', '.join(strangers)}; its lines must be NodeNames, "
            f"addresses (scontrol show node) or names that resolve to them; it names {', '.join(wanted)}"
        )
    return ordered


def machine_index(hosts: Sequence[ClusterHost], name: str) -> int:
    """How many hosts before this one share its machine: 0 except where all hosts are loopback addresses."""
    shared = [host.name for host in hosts if _is_loopback(host.address)]
    return shared.index(name) if name in shared else 0


def hosts_per_machine(hosts: Sequence[ClusterHost]) -> int:
    """How many hosts share a machine at most."""
    return max(1, sum(_is_loopback(host.address) for host in hosts))


def find_host(hosts: Iterable[ClusterHost], name: str) -> ClusterHost | None:
    """The host of that name or address."""
    return next((host for host in hosts if name in (host.name, host.address)), None)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
