"""The two forms of a hostfile that launchers read, and their exact commands. They differ: each refuses the other's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from r1hpc.cluster.hosts import ClusterHost
from r1hpc.publish import publish_text


def write_openmpi(hosts: Sequence[ClusterHost], path: Path) -> None:
    """Publish `address slots=8` lines, as Open MPI and DeepSpeed read them."""
    publish_text(path, "".join(f"{host.address} slots={host.slots}\n" for host in hosts))


def write_hydra(hosts: Sequence[ClusterHost], path: Path) -> None:
    """Publish `address:8` lines, as MPICH and Intel MPI read them."""
    publish_text(path, "".join(f"{_hydra_host(host)}:{host.slots}\n" for host in hosts))


def openmpi_command(hostfile: Path, num_nodes: int, program: str) -> str:
    """One process a host: without ppr:1:node Open MPI fills the slots of the first host."""
    return f"mpirun --hostfile {hostfile} --map-by ppr:1:node -np {num_nodes} {program}"


def mpich_command(hydra_hostfile: Path, num_nodes: int, program: str) -> str:
    """One process a host."""
    return f"mpiexec -f {hydra_hostfile} -ppn 1 -n {num_nodes} {program}"


def _hydra_host(host: ClusterHost) -> str:
    # Hydra splits the line at the first colon, so an IPv6 address cannot be written.
    return host.name if ":" in host.address else host.address
