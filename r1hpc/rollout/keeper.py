"""The parent of one server: ends it politely when its owner asks for that, and its whole process group at once when
the owner dies.

The owner asks by a byte on standard input. Not by SIGTERM: Slurm sends that to every process of a job that it preempts,
and whoever started us may have blocked it for that reason; so it does not reach the server either (polite_signal).

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
from collections.abc import Callable, Collection
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_TICK_S = 0.1
_REAP_PAUSE_S = 0.02
REAP_S = 20.0
"""Seconds in which killed processes must be gone."""
STOP = b"s"
"""On standard input: end the server politely."""
SIGNALLED = 128
"""Exit code of a server that a signal killed: this plus the signal's number."""


def main(grace_s: float, scratch: str, argv: list[str]) -> int:
    """Run `argv` until it ends, remove `scratch`, return the exit code; standard input ends when the owner dies."""
    inherited = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    # What the server leaves when it dies becomes our child, so that we can wait until it is gone.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stop = _StopRequest()
    signal.signal(signal.SIGTERM, stop.note)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    prepare = _before_exec(inherited)
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=prepare)
    deadline = None
    while server.poll() is None:
        said = _heard()
        if said == b"" or (deadline is not None and time.monotonic() > deadline):
            _kill_group(server.pid, signal.SIGKILL)
        elif (said == STOP or stop.came) and deadline is None:
            deadline = time.monotonic() + grace_s
            _kill_group(server.pid, polite_signal(inherited))
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


def _heard() -> bytes | None:
    """What the owner says within a tick: STOP, b"" when it has died, None for nothing."""
    readable, _, _ = select.select([sys.stdin], [], [], _TICK_S)
    return os.read(sys.stdin.fileno(), 1) if readable else None


def polite_signal(inherited: Collection[int]) -> signal.Signals:
    """What asks the server to leave: SIGINT where SIGTERM is blocked. Uvicorn, and so SGLang, takes both alike."""
    return signal.SIGINT if signal.SIGTERM in inherited else signal.SIGTERM


def _before_exec(inherited: Collection[int]) -> Callable[[], None]:
    """Let the server die with us, should somebody kill us. Of the signals, those of a scheduler stay as we got them."""
    prctl = ctypes.CDLL(None).prctl
    blocked = {number for number in inherited if number in (signal.SIGTERM, signal.SIGUSR1)}

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
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
