"""The train job: one node agent to a host. Under Slurm submitit runs NodeAgent; elsewhere:

    mpirun --hostfile hostfiles/r1.hostfile --map-by ppr:1:node -np 16 python -m jobs.train RUN --hostfile FILE
    python -m jobs.train RUN --attempt ATTEMPT --host NAME          one agent, after a preflight that passed

Imports nothing heavy: a signal that comes before the handlers are in place would end the attempt without a word.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from r1hpc import exit_codes

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


@dataclass(frozen=True)
class NodeAgent:
    """The picklable job: one task of it a node."""

    run_dir: str
    until: str = "end"
    """bring-up, canary or end"""
    attempt: str | None = None
    """The attempt's directory; None takes R1HPC_ATTEMPT, which the batch script exports."""
    host: str | None = None
    """This host's name or address; None asks the launcher."""

    def __call__(self) -> None:
        """Run this host's agent; leaves through SystemExit, with the exit code that all agents share."""
        requests: list[str] = []

        def request_stop(number: int, frame: FrameType | None) -> None:
            requests.append(signal.Signals(number).name)

        for number in STOP_SIGNALS:
            signal.signal(number, request_stop)
        # Who starts an agent may have blocked them, so that none comes before the handlers: take those in now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        sys.exit(self._run(requests))

    def _run(self, requests: list[str]) -> int:
        # Only now: see the module's docstring.
        from jobs.identity import identify
        from r1hpc.cluster.agent import run_agent
        from r1hpc.cluster.hosts import find_host, read_nodes
        from r1hpc.cluster.launch import read_launch
        from r1hpc.cluster.node import Node
        from r1hpc.cluster.spare import wait_as_spare
        from r1hpc.errors import BringUpError, R1hpcError
        from r1hpc.rundir import AttemptDir, RunDir

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        identity = identify(os.environ)
        name = self.host or (identity.node if identity else None)
        attempt = AttemptDir(Path(self.attempt or os.environ["R1HPC_ATTEMPT"]))
        try:
            launch = read_launch(attempt.launch)
            host = find_host(launch.hosts, name or "")
            if host is None:
                if name not in [spare.name for spare in read_nodes(attempt.begin)]:
                    raise BringUpError(f"host {name} is none of this attempt's: see {attempt.hosts}")
                logging.getLogger(__name__).info("%s is a spare of this attempt", name)
                return wait_as_spare(attempt, requests)
            node = Node(RunDir(Path(self.run_dir)), attempt, launch, host, self.until, dict(os.environ), requests)
            return run_agent(node)
        except BringUpError as error:
            print(error, file=sys.stderr)
            return exit_codes.BRING_UP_FAILED
        except R1hpcError as error:
            print(error, file=sys.stderr)
            return exit_codes.CRASHED


def main(argv: Sequence[str] | None = None) -> int:
    """One agent by hand, or one of those that mpirun starts."""
    parser = argparse.ArgumentParser(prog="python -m jobs.train", description=__doc__)
    parser.add_argument("run", type=Path, help="the run directory, or with --hostfile a configuration")
    parser.add_argument("--until", choices=("bring-up", "canary", "end"), default="end")
    parser.add_argument("--attempt", help="an attempt whose preflight has passed")
    parser.add_argument("--host", help="this host's name or address")
    parser.add_argument("--hostfile", type=Path, help="under mpirun: make the attempt on these hosts first")
    arguments = parser.parse_args(argv)
    for number in STOP_SIGNALS:
        signal.signal(number, _leave)
    attempt, run, host = arguments.attempt, str(arguments.run), arguments.host
    if arguments.hostfile is not None:
        from jobs.mpirun import open_attempt
        from r1hpc.errors import R1hpcError

        try:
            opened = open_attempt(arguments.run, arguments.hostfile)
        except R1hpcError as error:
            print(f"train: {error}", file=sys.stderr)
            return exit_codes.PREFLIGHT_FAILED
        attempt, run, host = str(opened.attempt.root), str(opened.run.root), host or opened.host
    NodeAgent(run, arguments.until, attempt, host)()
    return 0


def _leave(number: int, frame: FrameType | None) -> None:
    """Before the agent has its own handlers nothing is running that would have to be stopped in order.

    Not by an exception: Python drops one that is raised in a callback of its import locks.
    """
    os._exit(exit_codes.STOP_REQUESTED)


if __name__ == "__main__":
    sys.exit(main())
