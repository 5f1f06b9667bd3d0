"""Which processes make up each engine: on which host, at which GPUs, on which ports."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from r1hpc.cluster.ports import PortBand
from r1hpc.errors import R1hpcError

PORTS_PER_ENGINE = 24
"""Ports that one process of an engine may use: HTTP, NCCL, and the rendezvous block."""
_RENDEZVOUS = 2
"""First port of the rendezvous block. SGLang counts on from it: +1 to +6 are its sockets, +13 is a handshake of
data-parallel attention; the rest is room for what newer versions add."""


class EnginePlacementError(R1hpcError):
    """The engines do not fit the hosts, or their ports do not fit the band."""


@dataclass(frozen=True)
class EngineHost:
    """A host as the engines see it."""

    address: str
    """Where clients and other hosts reach it."""
    band: PortBand
    """Its ports."""


@dataclass(frozen=True)
class EngineProcess:
    """One process of an engine: the engine's share of one host."""

    engine: int
    """Index of the engine in the run."""
    node_rank: int
    """Index of the host in the engine; 0 serves HTTP."""
    num_nodes: int
    """Hosts of the engine."""
    num_gpus: int
    """GPUs of the whole engine: SGLang's tp_size."""
    base_gpu_id: int
    """First of its GPUs on this host."""
    host: str
    http_port: int
    """Of this process; above rank 0 SGLang answers nothing there but "alive"."""
    nccl_port: int
    rendezvous_host: str
    """The host of rank 0."""
    rendezvous_port: int
    head_http_port: int

    @property
    def name(self) -> str:
        """engine0, or engine0-node3 where an engine has several hosts."""
        return f"engine{self.engine}" + (f"-node{self.node_rank}" if self.num_nodes > 1 else "")

    @property
    def meeting_host(self) -> str:
        """Where the engine's processes meet, with nothing that keeps strangers out; loopback where that will do."""
        return "127.0.0.1" if self.num_nodes == 1 else self.rendezvous_host

    @property
    def url(self) -> str:
        """Where the whole engine is spoken to: the HTTP server of rank 0."""
        return f"http://{bracketed(self.rendezvous_host)}:{self.head_http_port}"

    @property
    def ports(self) -> range:
        """The ports that this process may listen on."""
        return range(self.http_port, self.http_port + PORTS_PER_ENGINE)


def place_engines(
    hosts: Sequence[EngineHost], gpus_per_host: int, gpus_per_engine: int
) -> tuple[tuple[EngineProcess, ...], ...]:
    """The processes of every engine, in the order of the hosts.

    An engine takes whole hosts, or a part that divides one. Raises EnginePlacementError.
    """
    for host in hosts:
        _check_address(host.address)
    world = len(hosts) * gpus_per_host
    if world % gpus_per_engine or (gpus_per_engine % gpus_per_host and gpus_per_host % gpus_per_engine):
        raise EnginePlacementError(
            f"sglang.rollout_num_gpus_per_engine({gpus_per_engine}): {len(hosts)} hosts * {gpus_per_host} GPUs ="
            f" {world} do not divide into such engines, each on whole hosts or on a part that divides one"
        )
    spread = max(1, gpus_per_engine // gpus_per_host)
    slots = max(1, gpus_per_host // gpus_per_engine)
    _check_ports(hosts, slots)
    return tuple(
        _engine(engine, hosts[engine // slots * spread :][:spread], engine % slots, gpus_per_engine)
        for engine in range(world // gpus_per_engine)
    )


def bracketed(address: str) -> str:
    """An address as it stands before :PORT."""
    return f"[{address}]" if ":" in address else address


def _engine(engine: int, hosts: Sequence[EngineHost], slot: int, num_gpus: int) -> tuple[EngineProcess, ...]:
    head = _first_port(hosts[0], slot)
    return tuple(
        EngineProcess(
            engine=engine,
            node_rank=rank,
            num_nodes=len(hosts),
            num_gpus=num_gpus,
            base_gpu_id=slot * num_gpus,
            host=host.address,
            http_port=_first_port(host, slot),
            nccl_port=_first_port(host, slot) + 1,
            rendezvous_host=hosts[0].address,
            rendezvous_port=head + _RENDEZVOUS,
            head_http_port=head,
        )
        for rank, host in enumerate(hosts)
    )


def _first_port(host: EngineHost, slot: int) -> int:
    return host.band.engines[0] + slot * PORTS_PER_ENGINE


def _check_address(address: str) -> None:
    with suppress(ValueError):  # a name
        if ipaddress.ip_address(address).is_unspecified:
            raise EnginePlacementError(
                f"an engine at {address} would listen on every network of its host: give the address in the fabric"
                " (the hostfile, or hosts.fabric_interface)"
            )


def _check_ports(hosts: Sequence[EngineHost], slots: int) -> None:
    for host in hosts:
        first, last = host.band.engines
        room, needed = last - first + 1, slots * PORTS_PER_ENGINE
        if needed > room:
            raise EnginePlacementError(
                f"hosts.port_span({host.band.span}) leaves {room} ports to the engines of a host, and {slots} engines *"
                f" {PORTS_PER_ENGINE} ports = {needed}; set hosts.port_span to {2 * needed} or more"
            )
