"""Who listens where: one band of ports a host, so that hosts which share a machine (loopback) never meet."""

from __future__ import annotations

from dataclasses import dataclass

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
    def workers(self) -> tuple[int, int]:
        """First and last port of Ray's worker processes and the driver, one each."""
        return self.first + _RESERVED, self.first + self.span // 2 - 1

    @property
    def engines(self) -> tuple[int, int]:
        """First and last port left to what the run itself starts: engines, routers, process groups."""
        return self.first + self.span // 2, self.first + self.span - 1


def band(port_base: int, port_span: int, index: int) -> PortBand:
    """The band of the index-th host of a machine."""
    return PortBand(port_base + index * port_span, port_span)
