"""Names, addresses and ports of a private cluster: pure functions of its spec and a base port."""

from __future__ import annotations

import ipaddress
from dataclasses import asdict, dataclass
from typing import Any

from r1hpc.rehearsal.spec import ClusterSpec, Kind

NAMESPACE_NETWORK = ipaddress.ip_network("10.77.0.0/16")
"""Used only inside a network namespace without uplink."""

LOOPBACK_NETWORK = ipaddress.ip_network("127.0.0.0/8")

FIRST_NODE_OFFSET = 11
"""node01 is the network's 11th address: 127.0.0.11 or 10.77.0.11."""

PORTS_BEFORE_NODES = 3
"""slurmctld, slurmdbd and MariaDB take the first ports of a block, then every node one."""


@dataclass(frozen=True)
class Node:
    """One node as slurm.conf names it."""

    name: str
    address: str
    port: int


@dataclass(frozen=True)
class Topology:
    """Who listens where."""

    controller_address: str
    controller_port: int
    dbd_port: int
    database_port: int
    nodes: tuple[Node, ...]

    @property
    def node_names(self) -> list[str]:
        """The names in order: node01, node02, ..."""
        return [node.name for node in self.nodes]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Topology:
        """Rebuild a topology that `to_json` wrote."""
        return cls(**values | {"nodes": tuple(Node(**node) for node in values["nodes"])})


def ports_needed(spec: ClusterSpec) -> int:
    """Return the number of ports that a cluster takes on a host which it shares with others."""
    return PORTS_BEFORE_NODES + spec.nodes


def plan_topology(spec: ClusterSpec, kind: Kind, base_port: int) -> Topology:
    """Lay the cluster out on the ports from `base_port`.

    On loopback every slurmd needs a port of its own: it listens on all addresses, whatever its NodeAddr.
    """
    network = NAMESPACE_NETWORK if kind is Kind.NAMESPACE else LOOPBACK_NETWORK
    first_port = base_port + PORTS_BEFORE_NODES
    width = max(2, len(str(spec.nodes)))
    nodes = tuple(
        Node(
            name=f"node{index + 1:0{width}d}",
            address=str(network[FIRST_NODE_OFFSET + index]),
            port=first_port if kind is Kind.NAMESPACE else first_port + index,
        )
        for index in range(spec.nodes)
    )
    return Topology(
        controller_address=str(network[1]),
        controller_port=base_port,
        dbd_port=base_port + 1,
        database_port=base_port + 2,
        nodes=nodes,
    )
