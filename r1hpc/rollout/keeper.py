"""The parent of one server: it passes on SIGTERM, and ends the server's whole process group when its own owner dies.

PR_SET_PDEATHSIG alone would not do: it follows the thread that started the child, and an actor's threads come and go.
Run as a file, with the standard library only, so that it is there before the server's imports begin.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_TICK_S = 0.1
_REAP_PAUSE_S = 0.02
REAP_S = 20.0
"""Seconds in which killed processes must be gone."""
SIGNALLED = 128
"""Exit code of a server that a signal killed: this plus the signal's number."""


def main(grace_s: float, scratch: str, argv: list[str]) -> int:
    """Run `argv` until it ends, remove `scratch`, return the exit code; standard input ends when the owner dies."""
    # What the server leaves when it dies becomes our child, so that we can wait until it is gone.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stop = _StopRequest()
    signal.signal(signal.SIGTERM, stop.note)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_before_exec())
    deadline = None
    while server.poll() is None:
        if _owner_died() or (deadline is not None and time.monotonic() > deadline):
            _kill_group(server.pid, signal.SIGKILL)
        elif stop.came and deadline is None:
            deadline = time.monotonic() + grace_s
            _kill_group(server.pid, signal.SIGTERM)
    _kill_group(server.pid, signal.SIGKILL)
    _reap_all()
    shutil.rmtree(scratch, ignore_errors=True)
    code = server.wait()
    return code if code >= 0 else SIGNALLED - code


class _StopRequest:
    """Whether SIGTERM came; a handler must do no more than note it."""

    def __init__(self) -> None:
        self.came = False

    def note(self, number: int, frame: object) -> None:
        self.came = True


def _owner_died() -> bool:
    """Wait a tick for the end of standard input, which nobody writes to."""
    readable, _, _ = select.select([sys.stdin], [], [], _TICK_S)
    return bool(readable)


def _before_exec() -> Callable[[], None]:
    """Let the server die with us, should somebody kill us; signals arrive at it as by default."""
    prctl = ctypes.CDLL(None).prctl

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    return prepare


def _reap_all() -> None:
    """Kill what is left and wait for it: a process that is going still holds its GPU's memory.

    What was orphaned is our child now, also where it had left the server's process group.
    """
    deadline = time.monotonic() + REAP_S
    while time.monotonic() < deadline:
        for child in _children():
            _kill(child)
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            time.sleep(_REAP_PAUSE_S)


def _children() -> list[int]:
    """Their pids; none where the kernel does not list them."""
    try:
        return [int(word) for word in Path("/proc/thread-self/children").read_text().split()]
    except OSError:
        return []


def _kill(child: int) -> None:
    # Not reaped before we do it, so the number is still its own.
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


def _kill_group(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2], sys.argv[3:]))
