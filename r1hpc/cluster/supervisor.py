"""The agent's children: started so that no signal meant for the agent touches them, ended by pid to the last one."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from r1hpc.cluster.guardian import Guardian
from r1hpc.cluster.processes import descendants, kill, processes_of_node
from r1hpc.cluster.segments import SharedSegments

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_HARMLESS = (signal.SIGUSR1, signal.SIGTERM)
_PAUSE_S = 0.02
_STOP_S = 10.0
"""For what was killed to be gone."""
_LOOK_S = 15.0
"""Between two looks at the shared memory of what runs: an engine that dies leaves its own, and cannot be asked."""


@dataclass(frozen=True)
class Exit:
    """A child that ended."""

    name: str
    returncode: int
    """Negative: the number of the signal that killed it."""
    log: Path

    def __str__(self) -> str:
        end = f"exit code {self.returncode}" if self.returncode >= 0 else signal.Signals(-self.returncode).name
        said = _last_line(self.log)
        return f"{self.name} ended with {end}" + (f": {said}" if said else "") + f" (see {self.log})"


class Supervisor:
    """Starts, reaps and ends the processes of one node. One to a process, entered before any thread is started."""

    def __init__(self, node: str, logs: Path, log_prefix: str, scratch: Path) -> None:
        """`node` is the R1HPC_NODE mark that every child's environment carries; `scratch` goes if we are killed."""
        self._node = node
        self._logs = logs
        self._prefix = log_prefix
        self._children: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}
        self._guardian = Guardian(node, scratch)
        self._segments = SharedSegments()
        self._looked = time.monotonic()
        self._gave_up = False
        self._prctl = ctypes.CDLL(None, use_errno=True).prctl

    def __enter__(self) -> Supervisor:
        # Whatever loses its parent becomes our child, and so can be found and ended.
        if self._prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
        self._guardian.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What outlived one deadline outlives another; the kill may be near.
        self.stop_all(0.0 if self._gave_up else _STOP_S)
        self._guardian.__exit__(kind, error, trace)

    def start(
        self, name: str, argv: Sequence[str], environment: Mapping[str, str], stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """Start a child in its own session, USR1 and TERM blocked, killed when we are; output to logs/PREFIX-NAME.log.

        Blocked, not ignored: the mask is inherited, and a library's own handler does not undo it.
        """
        with open(self.log(name), "ab") as log:
            child = subprocess.Popen(
                argv,
                env=dict(environment),
                stdin=stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # No Python threads here, so running Python between fork and exec is safe.
                preexec_fn=self._before_exec(os.getpid()),
            )
        self._children[child.pid] = (name, child)
        return child

    def log(self, name: str) -> Path:
        """The log file of a child."""
        return self._logs / f"{self._prefix}-{name}.log"

    def reap(self) -> list[Exit]:
        """The named children that ended since the last call; adopted orphans are reaped on the way."""
        if time.monotonic() - self._looked > _LOOK_S:
            self._segments.note(descendants(os.getpid()))
            self._looked = time.monotonic()
        ended: list[Exit] = []
        while True:
            try:
                # The guardian is ours too, but ends only after we released it.
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            if pid in self._children:
                name, child = self._children.pop(pid)
                child.returncode = os.waitstatus_to_exitcode(status)
                ended.append(Exit(name, child.returncode, self.log(name)))

    def stop_all(self, deadline_s: float = _STOP_S) -> list[int]:
        """Kill every descendant, and whatever carries the node's mark; returns the pids that outlived the deadline."""
        deadline = time.monotonic() + deadline_s
        while True:
            self.reap()
            left = sorted({*descendants(os.getpid()), *processes_of_node(self._node)} - {self._guardian.pid})
            if not left or time.monotonic() > deadline:
                self._segments.remove()
                self._gave_up = bool(left)
                return left
            self._segments.note(left)
            for pid in left:
                kill(pid, signal.SIGKILL)
            time.sleep(_PAUSE_S)

    def _before_exec(self, parent: int) -> Callable[[], None]:
        def prepare() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, _HARMLESS)
            self._prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)  # killed before the request was made

        return prepare


def _last_line(log: Path) -> str:
    """The last line of a log that says something, shortened."""
    try:
        lines = log.read_bytes()[-4096:].decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")
