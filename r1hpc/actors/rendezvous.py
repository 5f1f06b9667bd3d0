"""How the trainers' ranks meet: a store on the head, then the process group of all of them."""

from __future__ import annotations

import ipaddress
import os
import socket
from datetime import timedelta

import psutil
import torch
import torch.distributed as dist

from r1hpc.actors.place import Rendezvous
from r1hpc.errors import R1hpcError

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"


class RendezvousError(R1hpcError):
    """The ranks cannot meet."""


def join(rendezvous: Rendezvous, rank: int, device: torch.device) -> None:
    """Make the process group of all ranks. Raises RendezvousError where the store cannot listen.

    It stays for as long as they live, and what the ranks tell each other about themselves goes over its gloo, on a GPU
    too: there NCCL, which would keep memory while the trainer sleeps, is in other groups, which can be destroyed. Their
    communicators are made when they are first used, so no device is named here: of Megatron's 21 groups most never are,
    and each took 0.5 GiB of the GPU (one H200, NCCL 2.28).
    """
    if GLOO_INTERFACE not in os.environ and (interface := interface_towards(rendezvous.address)):
        os.environ[GLOO_INTERFACE] = interface
    store = dist.TCPStore(  # type: ignore[attr-defined]
        rendezvous.address,
        rendezvous.port,
        rendezvous.world_size,
        is_master=rank == 0,
        timeout=timedelta(seconds=rendezvous.join_timeout_s),
        wait_for_workers=False,
        # By itself it would listen on every interface of the host.
        master_listen_fd=_listening(rendezvous) if rank == 0 else None,
    )
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl",
        store=dist.PrefixStore("trainers", store),  # type: ignore[attr-defined]
        rank=rank,
        world_size=rendezvous.world_size,
        timeout=timedelta(seconds=rendezvous.collective_timeout_s),
    )


def interface_towards(address: str) -> str | None:
    """The network interface by which this host reaches `address`, its own or another's; null where none is found.

    Gloo would take the address that the host's name resolves to, on many distributions 127.0.1.1.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # sends nothing: the kernel chooses a route
        except OSError:
            return None
        mine = probe.getsockname()[0].split("%")[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.family == family and each.address.split("%")[0] == mine for each in addresses):
            return str(name)
    # All of 127.0.0.0/8 is this host, whatever the interface says that it has.
    return "lo" if ipaddress.ip_address(mine).is_loopback else None


def _listening(rendezvous: Rendezvous) -> int:
    address, port = rendezvous.address, rendezvous.port
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=2 * rendezvous.world_size).detach()
    except OSError as error:
        raise RendezvousError(
            f"the trainers' store cannot listen on {address} port {port} ({error.strerror}): is that the head's"
            " address, and has nobody else a port of this run's band (hosts.port_base)?"
        ) from error
