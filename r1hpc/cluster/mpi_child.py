"""MPI in a forked child: MPI_Init may hang for ever when one node is bad, and then the parent still judges."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from types import TracebackType
from typing import Any

from r1hpc.cluster.processes import kill
from r1hpc.errors import PreflightError


class MpiChild:
    """This process's rank in MPI_COMM_WORLD, held by a child. Collective: every rank makes the same calls."""

    def __enter__(self) -> MpiChild:
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._commands)
            os.close(self._answers)
            _serve(commands, answers)
        os.close(commands)
        os.close(answers)
        self._unread = b""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._commands)  # the child finalizes MPI and leaves
        if kind is not None or not self._leaves(deadline_s=10.0):
            kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._answers)

    def begin(self, size: int, deadline: float) -> None:
        """Wait for MPI_Init. Raises PreflightError unless the world has `size` ranks."""
        found = self._answer(deadline, "MPI_Init")
        if found == size:
            return
        why = (
            "; the launcher does not suit this MPI: hosts.mpi is pmi2 for MPICH, pmix for Open MPI"
            if found == 1
            else ""
        )
        raise PreflightError(f"MPI_COMM_WORLD has {found} of {size} ranks{why}")

    def broadcast(self, value: Any, deadline: float) -> Any:
        """Rank 0's value, on every rank."""
        return self._ask({"broadcast": value}, deadline, "MPI_Bcast")

    def exchange(self, value: Any, deadline: float) -> list[tuple[Any, float]]:
        """Every rank's value, and its clock right after a barrier, by rank."""
        return [(value, clock) for value, clock in self._ask({"exchange": value}, deadline, "MPI_Allgather")]

    def _ask(self, command: dict[str, Any], deadline: float, what: str) -> Any:
        os.write(self._commands, json.dumps(command).encode() + b"\n")
        return self._answer(deadline, what)

    def _answer(self, deadline: float, what: str) -> Any:
        started = time.monotonic()
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise PreflightError(f"{what} did not return within {time.monotonic() - started:.0f} s")
            part = os.read(self._answers, 1 << 16)
            if not part:
                raise PreflightError(f"{what} failed: the MPI process died (its message is in the log)")
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return json.loads(line)

    def _leaves(self, deadline_s: float) -> bool:
        deadline = time.monotonic() + deadline_s
        while time.monotonic() < deadline:
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return True
            time.sleep(0.01)
        return False


def _serve(commands: int, answers: int) -> None:
    """In the child: join MPI, answer commands until they end; never returns."""
    code = 1
    try:
        from mpi4py import MPI  # initializes MPI

        world = MPI.COMM_WORLD
        _write(answers, world.size)
        with open(commands, encoding="utf-8") as lines:
            for line in lines:
                command = json.loads(line)
                if "broadcast" in command:
                    _write(answers, world.bcast(command["broadcast"], 0))
                else:
                    world.Barrier()
                    _write(answers, world.allgather((command["exchange"], time.time())))
        MPI.Finalize()
        code = 0
    finally:
        # Never back into the caller's code: this is its fork.
        os._exit(code)


def _write(descriptor: int, value: Any) -> None:
    data = json.dumps(value).encode() + b"\n"
    while data:
        data = data[os.write(descriptor, data) :]
