"""The process that is a rank: joins MPI, answers commands from its standard input until that ends.

    python -m r1hpc.cluster.mpi_rank DESCRIPTOR        answers go there, one JSON value a line

It ends as any program does: a fork that leaves by os._exit is taken for a crash by MPICH's launcher now and then,
since the farewell to the launcher is sent by an exit handler.
"""

from __future__ import annotations

import json
import sys
import time
from typing import IO, Any


def main() -> None:
    """Announce the size of the world, then serve."""
    with open(int(sys.argv[1]), "w", encoding="utf-8") as answers:
        from mpi4py import MPI  # initializes MPI, and may not return

        world = MPI.COMM_WORLD
        _say(answers, world.size)
        for line in sys.stdin:
            command = json.loads(line)
            if "broadcast" in command:
                _say(answers, world.bcast(command["broadcast"], 0))
            else:
                world.Barrier()
                _say(answers, world.allgather((command["exchange"], time.time())))


def _say(answers: IO[str], value: Any) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
