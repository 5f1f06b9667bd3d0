"""Who this process is: rank, size and node name, as Slurm, MPICH, Intel MPI or Open MPI say it in the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Identity:
    """One of the processes of a launch, one a node."""

    rank: int
    size: int
    node: str | None
    """NodeName under Slurm, the hostfile's own word under MPICH; None when the launcher does not say."""
    launcher: str


_LAUNCHERS: tuple[tuple[str, str, str, str | None], ...] = (
    ("Slurm", "SLURM_PROCID", "SLURM_NTASKS", "SLURMD_NODENAME"),
    ("MPICH", "PMI_RANK", "PMI_SIZE", "PMI_HOSTNAME"),
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", None),
)


def identify(environment: Mapping[str, str]) -> Identity | None:
    """The identity that the innermost launcher gave; None for a process that nothing launched.

    mpiexec inside a Slurm job sets its own variables beside Slurm's: it is the inner one. srun --mpi=pmi2 sets
    PMI_RANK too, but no PMI_HOSTNAME.
    """
    order = _LAUNCHERS
    if "PMI_HOSTNAME" in environment or "OMPI_COMM_WORLD_RANK" in environment:
        order = _LAUNCHERS[1:]
    for launcher, rank, size, node in order:
        if rank in environment and size in environment:
            name = environment.get(node) if node else None
            return Identity(int(environment[rank]), int(environment[size]), name, launcher)
    return None
