"""The train job's first step, one rank a node: look at every node before anything is started on it.

srun --ntasks-per-node=1 --mpi=pmi2 python -m jobs.preflight RUN ATTEMPT
"""

from __future__ import annotations

import os
import signal
import sys

from r1hpc import exit_codes

if __name__ == "__main__":
    # Before the imports below, which take a while; nothing is running yet that would have to be stopped in order.
    # Not by an exception: Python drops one that is raised in a callback of its import locks.
    for _number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(_number, lambda number, frame: os._exit(exit_codes.STOP_REQUESTED))
    # Who starts us may have blocked them until now.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGUSR1, signal.SIGTERM))

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from jobs.identity import Identity, identify
from r1hpc.cluster.hosts import Node, read_nodes
from r1hpc.cluster.preflight_rank import Rank, run_rank
from r1hpc.errors import PreflightError, R1hpcError
from r1hpc.rundir import AttemptDir, RunDir


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 when the run may start, 76 when a node must not be used, 75 when a signal asks to stop."""
    parser = argparse.ArgumentParser(prog="python -m jobs.preflight", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("attempt", type=Path)
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    run, attempt = RunDir(arguments.run.resolve()), AttemptDir(arguments.attempt.resolve())
    try:
        identity = identify(os.environ)
        if identity is None:
            raise PreflightError("the preflight is one process a node: start it with srun or mpiexec, not by hand")
        node = own_node(identity, read_nodes(attempt.begin))
        return run_rank(run, attempt, rank_of(identity, os.environ), node)
    except R1hpcError as error:
        print(f"preflight: {error}", file=sys.stderr)
        return exit_codes.PREFLIGHT_FAILED


def rank_of(identity: Identity, environment: Mapping[str, str]) -> Rank:
    """This process among the preflight's."""
    gpus = environment.get("SLURM_GPUS_ON_NODE")
    return Rank(identity.rank, identity.size, environment, int(gpus) if gpus else None)


def own_node(identity: Identity, nodes: Sequence[Node]) -> Node:
    """Which of the attempt's nodes this process is on: by name, else by rank, since launchers keep the order.

    Raises PreflightError unless there is exactly one process a node.
    """
    if identity.size != len(nodes):
        raise PreflightError(
            f"{identity.launcher} started {identity.size} processes for {len(nodes)} nodes; it must be one a node "
            "(srun --ntasks-per-node=1, mpirun --map-by ppr:1:node, mpiexec -ppn 1)"
        )
    named = [node for node in nodes if identity.node in (node.name, node.address)]
    return named[0] if named else nodes[identity.rank]


if __name__ == "__main__":
    for _number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(_number, lambda number, frame: sys.exit(exit_codes.STOP_REQUESTED))
    sys.exit(main())
