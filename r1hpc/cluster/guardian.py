"""The guardian: a fork of the agent that outlives it. If the agent is killed, it ends what the agent had started.

PR_SET_PDEATHSIG reaches direct children only; an engine that an actor started would live on and hold its GPU's memory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import TracebackType

from r1hpc.cluster.processes import kill, processes_of_node
from r1hpc.cluster.scratch import remove_scratch
from r1hpc.cluster.segments import SharedSegments

_RELEASED = b"."
_PAUSE_S = 0.05
_LIMIT_S = 30.0


class Guardian:
    """Watches the process that enters it; must be entered before any thread is started."""

    def __init__(self, node: str, scratch: Path) -> None:
        self._node = node
        self._scratch = scratch
        self.pid = 0

    def __enter__(self) -> Guardian:
        watched, self._held = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._held)
            _watch(watched, self._node, self._scratch)
        os.close(watched)
        os.set_inheritable(self._held, False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError, ChildProcessError):  # somebody killed it
            os.write(self._held, _RELEASED)
            os.waitpid(self.pid, 0)
        os.close(self._held)


def _watch(pipe: int, node: str, scratch: Path) -> None:
    """In the guardian: wait for the release or the agent's death; never returns."""
    try:
        os.setsid()
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if os.read(pipe, 1) != _RELEASED:
            _end_all(node)
            remove_scratch(scratch)
    finally:
        # Never back into the agent's code: this is its fork.
        os._exit(0)


def _end_all(node: str) -> None:
    """Kill what carries the node's mark until nothing does; a process may be starting another one just now."""
    deadline = time.monotonic() + _LIMIT_S
    segments = SharedSegments()
    while (pids := processes_of_node(node)) and time.monotonic() < deadline:
        segments.note(pids)
        for pid in pids:
            kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)
    segments.remove()
