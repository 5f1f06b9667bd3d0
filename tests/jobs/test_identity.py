"""Who a process is, from the variables that launchers really set."""

from __future__ import annotations

import pytest

from jobs.identity import Identity, identify
from jobs.preflight import own_node
from r1hpc.cluster.hosts import Node
from r1hpc.errors import PreflightError

SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURMD_NODENAME": "node04"}
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "2", "PMI_FD": "7", "PMI_HOSTNAME": "192.0.2.2", "MPI_LOCALRANKID": "0"}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2"}


@pytest.mark.parametrize(
    ("environment", "identity"),
    [
        (SLURM, Identity(3, 4, "node04", "Slurm")),
        (SLURM | {"PMI_RANK": "3", "PMI_SIZE": "4", "PMI_FD": "8"}, Identity(3, 4, "node04", "Slurm")),
        (HYDRA, Identity(1, 2, "192.0.2.2", "MPICH")),
        (SLURM | HYDRA, Identity(1, 2, "192.0.2.2", "MPICH")),
        (OPEN_MPI, Identity(0, 2, None, "Open MPI")),
        (SLURM | OPEN_MPI, Identity(0, 2, None, "Open MPI")),
        ({}, None),
        ({"SLURM_JOB_ID": "7"}, None),
    ],
    ids=["srun", "srun --mpi=pmi2", "mpiexec", "mpiexec in a job", "mpirun", "mpirun in a job", "by hand", "batch"],
)
def test_the_innermost_launcher_says_who_we_are(environment: dict[str, str], identity: Identity | None) -> None:
    assert identify(environment) == identity


NODES = [Node("node01", "192.0.2.1"), Node("node02", "192.0.2.2")]


def test_a_process_finds_its_node_by_name_or_address_or_else_by_rank() -> None:
    assert own_node(Identity(0, 2, "node02", "Slurm"), NODES) == NODES[1]
    assert own_node(Identity(0, 2, "192.0.2.2", "MPICH"), NODES) == NODES[1]
    assert own_node(Identity(1, 2, None, "Open MPI"), NODES) == NODES[1]


def test_more_processes_than_nodes_is_an_error_that_shows_the_right_launch() -> None:
    with pytest.raises(PreflightError, match=r"Open MPI started 16 processes for 2 nodes; .*--map-by ppr:1:node"):
        own_node(Identity(0, 16, None, "Open MPI"), NODES)
