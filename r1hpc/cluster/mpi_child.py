"""MPI in a child process: MPI_Init may hang for ever when one node is bad, and then the parent still judges.

The child inherits the launcher's connection (PMI_FD) and is the rank; the parent never touches MPI.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from r1hpc.cluster.processes import shared_memory_of
from r1hpc.errors import PreflightError

_LEAVE_S = 10.0
_TRANSPORT = {"OMPI_MCA_btl": "self,tcp"}
"""Open MPI's shared memory crashes between hosts that are one machine, and one rank a host has no use for it."""


class MpiChild:
    """This process's rank in MPI_COMM_WORLD, held by a child. Collective: every rank makes the same calls."""

    def __enter__(self) -> MpiChild:
        self._answers, answers = os.pipe()
        os.set_inheritable(answers, True)
        home = Path(__file__).resolve().parents[2]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "r1hpc.cluster.mpi_rank", str(answers)],
            stdin=subprocess.PIPE,
            cwd=home,
            env=_TRANSPORT | os.environ,
            close_fds=False,  # the launcher's connection is one of them
        )
        os.close(answers)
        self._unread = b""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None, "made with stdin=PIPE"
        try:
            self._process.stdin.close()  # the child finalizes MPI and leaves
            self._process.wait(_LEAVE_S if kind is None else 0)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            segments = shared_memory_of(self._process.pid)
            self._process.kill()
            self._process.wait()
            for segment in segments:  # MPI would have removed them at its end
                segment.unlink(missing_ok=True)
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
        assert self._process.stdin is not None, "made with stdin=PIPE"
        try:
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer says the rest
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
