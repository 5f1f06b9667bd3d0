"""The process that workers are forked from: it has imported everything, so that a new worker is there in milliseconds.

Run as `python -m r1hpc.rewards.nursery PARENT-PID CONTROL-FD`. It has one thread and grades nothing, so it always
answers. It is the parent of the workers, hence the one who may signal them by pid. When the pool goes, however it goes,
the control socket ends; then it kills the workers and leaves.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress

from r1hpc.rewards.custom import load_custom
from r1hpc.rewards.frames import Message, pack, unpack
from r1hpc.rewards.kinds import grader_of, is_custom
from r1hpc.rewards.request import RewardError
from r1hpc.rewards.worker import die_with_parent, limit_memory, outlive_signals_to_all, serve

MAX_PACKET_BYTES = 2**17
_PARENT_ENDED = signal.SIGRTMIN + 3
"""One that nothing else sends."""
_WARM_UP = (
    (r"\boxed{\frac{1}{2}}", "0.5"),
    (r"\boxed{2x+x^2+\sqrt{8}}", r"x(x+2)+2\sqrt2"),
    (r"\boxed{(1,\frac{2}{3}\pi)}", r"(1,2\pi/3)"),
    (r"\boxed{5}", "7"),
)
"""Sympy fills its caches when first used; graded here once, forked workers have them filled."""


class Nursery:
    """The workers that were forked and not yet reaped."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._pids: dict[int, int] = {}
        """By the number that the pool gave the worker."""
        self._handles: dict[int, int] = {}
        """pidfds, likewise."""

    def run(self, memory_mb: int) -> None:
        """Serve the pool until it closes the control socket."""
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is not self._control:
                    self._reap(key.data)
                elif not self._obey(memory_mb):
                    return

    def end_all(self) -> None:
        for pid in self._pids.values():
            _kill(pid)
        for pid in self._pids.values():
            os.waitpid(pid, 0)

    def _obey(self, memory_mb: int) -> bool:
        """Carry out one order; False when the pool is gone."""
        packet, descriptors, _, _ = socket.recv_fds(self._control, MAX_PACKET_BYTES, 1)
        if not packet:
            return False
        order = unpack(packet)
        number = order["worker"]
        if order["do"] == "fork":
            self._fork(number, descriptors[0], memory_mb)
        elif number in self._pids:  # it may have died of itself meanwhile
            if order["do"] == "kill":
                _kill(self._pids[number])
            else:
                os.setpriority(os.PRIO_PROCESS, self._pids[number], order["nice"])
        return True

    def _fork(self, number: int, descriptor: int, memory_mb: int) -> None:
        nursery = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._become_worker(nursery, descriptor, memory_mb)
        os.setpgid(pid, pid)  # here too: it may be killed before it has run
        os.close(descriptor)
        self._pids[number] = pid
        self._handles[number] = os.pidfd_open(pid)
        self._selector.register(self._handles[number], selectors.EVENT_READ, number)

    def _become_worker(self, nursery: int, descriptor: int, memory_mb: int) -> None:
        """In the fork: grade, then leave; never returns."""
        try:
            os.setpgid(0, 0)
            outlive_signals_to_all()
            die_with_parent(nursery)
            self._selector.close()
            self._control.close()
            for handle in self._handles.values():
                os.close(handle)
            with socket.socket(fileno=descriptor) as channel:
                limit_memory(memory_mb)
                serve(channel)
        except ConnectionError:
            os._exit(0)  # the pool hung up in the middle of an answer
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        # Never back into the nursery's code: this is its fork.
        os._exit(0)

    def _reap(self, number: int) -> None:
        handle = self._handles.pop(number)
        self._selector.unregister(handle)
        os.close(handle)
        _kill(self._pids[number])
        _, status = os.waitpid(self._pids.pop(number), 0)
        self._control.send(pack({"exited": number, "status": os.waitstatus_to_exitcode(status)}))


def main(arguments: Sequence[str]) -> None:
    """Import, say so, serve, leave nothing behind."""
    parent, descriptor = map(int, arguments)
    die_with_parent(parent)
    with socket.socket(fileno=descriptor) as control:
        outlive_signals_to_all()
        orders = unpack(control.recv(MAX_PACKET_BYTES))
        ready = pack(_import(orders["kinds"]))
        outlive_signals_to_all()  # again: what was imported may have its own handlers
        # No longer SIGKILL: what functions of the user have started is ended too.
        signal.signal(_PARENT_ENDED, lambda *_: sys.exit(1))
        die_with_parent(parent, _PARENT_ENDED)
        control.send(ready)
        nursery = Nursery(control)
        try:
            nursery.run(orders["memory_mb"])
        except ConnectionError:
            pass  # the pool died
        finally:
            nursery.end_all()


def _kill(worker: int) -> None:
    """Kill a worker that was not reaped yet, and whatever a function of the user has started in it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(worker, signal.SIGKILL)


def _import(kinds: Sequence[str]) -> Message:
    """Import what the kinds need; the pool gets {"problem": None}, or why not."""
    try:
        for kind in kinds:
            if is_custom(kind):
                load_custom(kind)
                continue
            grade = grader_of(kind)
            for response, label in _WARM_UP:
                grade(f"</think>{response}" if kind == "deepscaler" else response, label)
    except RewardError as error:
        # What the file system refuses now it may give the next time.
        return {"problem": str(error), "final": not isinstance(error.__cause__, OSError)}
    if threading.active_count() > 1:
        names = ", ".join(thread.name for thread in threading.enumerate()[1:])
        return {
            "problem": f"importing {', '.join(kinds)} started threads ({names}): a process that has any cannot fork",
            "final": True,
        }
    return {"problem": None}


if __name__ == "__main__":
    main(sys.argv[1:])
