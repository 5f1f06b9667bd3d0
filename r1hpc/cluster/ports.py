"""Who listens where: one band of ports a host, so that hosts which share a machine (loopback) never meet."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from r1hpc.errors import ClusterError

CANDIDATES = 8
"""Bands that a job may take, one beside the other; a firewall has to let all of them through between the nodes."""
_LAST_PORT = 65535
_RESERVED = 16
"""Ports at the start of a band that belong to one named service each."""


@dataclass(frozen=True)
class PortBand:
    """The ports [first, first + span) of one host."""

    first: int
    span: int

    @property
    def roll_call(self) -> int:
        """The head agent's control channel."""
        return self.first

    @property
    def gcs(self) -> int:
        """Ray's global control store, on the head only: the cluster's address."""
        return self.first + 1

    @property
    def node_manager(self) -> int:
        """The raylet."""
        return self.first + 2

    @property
    def object_manager(self) -> int:
        """The raylet's object transfers."""
        return self.first + 3

    @property
    def metrics_export(self) -> int:
        """Ray's metrics."""
        return self.first + 4

    @property
    def agent_http(self) -> int:
        """Ray's node agent."""
        return self.first + 5

    @property
    def agent_grpc(self) -> int:
        """Ray's node agent."""
        return self.first + 6

    @property
    def runtime_env(self) -> int:
        """Ray's runtime environment agent."""
        return self.first + 7

    @property
    def ray_client(self) -> int:
        """Ray's client server, on the head only: `ray start` starts it wherever grpc is installed."""
        return self.first + 8

    @property
    def rendezvous(self) -> int:
        """The store at which the trainers' ranks meet, on the head only."""
        return self.first + 9

    @property
    def dashboard(self) -> int:
        """Ray's dashboard, which is not started; `ray start` has its port in mind all the same, by itself 8265."""
        return self.first + 10

    @property
    def workers(self) -> tuple[int, int]:
        """First and last port of Ray's worker processes and the driver, one each."""
        return self.first + _RESERVED, self.first + self.span // 2 - 1

    @property
    def engines(self) -> tuple[int, int]:
        """First and last port left to what the run itself starts: engines, routers, process groups."""
        return self.first + self.span // 2, self.first + self.span - 1


def choose_port_base(port_base: int, port_span: int, hosts_per_machine: int, busy: Iterable[int], attempt: str) -> int:
    """The first port of the job's bands: one of `CANDIDATES` steps above port_base, where nobody of `busy` is.

    Jobs that share a node must not meet, so attempts start their search at different steps. Raises ClusterError.
    """
    step, taken = port_span * hosts_per_machine, sorted(set(busy))
    bases = [port_base + index * step for index in range(CANDIDATES)]
    bases = [base for base in bases if base + step - 1 <= _LAST_PORT]
    if not bases:
        raise ClusterError(
            f"hosts.port_base({port_base}) + hosts.port_span({port_span}) * {hosts_per_machine} hosts on one machine "
            f"goes beyond port {_LAST_PORT}; lower hosts.port_base"
        )
    first = zlib.crc32(attempt.encode()) % len(bases)
    for base in [*bases[first:], *bases[:first]]:
        if not any(base <= port < base + step for port in taken):
            return base
    in_the_way = [str(port) for port in taken if bases[0] <= port < bases[-1] + step]
    raise ClusterError(
        f"ports {bases[0]} to {bases[-1] + step - 1}: none of {len(bases)} bands of {step} is free on every node "
        f"(taken: {', '.join(in_the_way[:8])}); set hosts.port_base"
    )


def band(port_base: int, port_span: int, index: int) -> PortBand:
    """The band of the index-th host of a machine."""
    return PortBand(port_base + index * port_span, port_span)
