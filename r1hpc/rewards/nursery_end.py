"""The pool's end of the nursery: start it, have it fork, kill and reap, notice its death."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

from r1hpc.rewards.frames import Message, pack, unpack
from r1hpc.rewards.nursery import MAX_PACKET_BYTES
from r1hpc.rewards.request import RewardError, RewardLoadError
from r1hpc.rewards.worker_end import Worker

_START_LIMIT_S = 300.0
"""A function of the user may import torch, from a file system that thousands of processes read."""
_CLOSE_LIMIT_S = 5.0
_LOW_PRIORITY = 10


class NurseryDiedError(Exception):
    """There is no nursery to ask; a new one may be."""


class NurseryEnd:
    """One nursery process, from its start to its end."""

    def __init__(self, kinds: Sequence[str], memory_mb: int) -> None:
        self._kinds = list(kinds)
        self._memory_mb = memory_mb
        self._numbers = itertools.count()
        self._workers: dict[int, Worker] = {}
        self._alive = True
        self._listener: asyncio.Task[None] | None = None

    async def start(self, on_exit: Callable[[Worker], None], on_death: Callable[[], None]) -> None:
        """Start it and have it import; raises RewardError with its reason if it cannot.

        on_exit: called with each worker whose process is gone. on_death: called once if the nursery goes though nobody
        closed it, when nothing that was asked of its workers is still waited for.
        """
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "r1hpc.rewards.nursery", str(os.getpid()), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=_environment(),
            )
        try:
            await self._import()
        except BaseException:  # cancelled too: the process is there
            await self.close()
            raise
        self._listener = asyncio.create_task(self._listen(on_exit, on_death))

    async def fork(self) -> Worker:
        """A new worker. Raises NurseryDiedError; RewardError if the worker does not come up."""
        if not self._alive:
            raise NurseryDiedError
        ours, theirs = socket.socketpair()
        worker = Worker(next(self._numbers))
        self._workers[worker.number] = worker
        with theirs:
            self._order({"do": "fork", "worker": worker.number}, [theirs.fileno()])
        await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=ours)
        await asyncio.wait((worker.ready,))
        if worker.ready.cancelled():
            raise NurseryDiedError
        if (answer := worker.ready.result()).outcome != "graded":
            raise RewardError(f"a new reward process did not start: {answer.detail}")
        if not worker.alive:  # it has come up, and has died since, mostly with its nursery
            raise NurseryDiedError
        return worker

    def kill(self, worker: Worker) -> None:
        """Kill a worker, whatever it does."""
        worker.hang_up()
        if self._workers.get(worker.number) is worker:  # not of an earlier nursery, which are dead
            self._order({"do": "kill", "worker": worker.number})

    def lower_priority(self, worker: Worker) -> None:
        if self._workers.get(worker.number) is worker:
            self._order({"do": "nice", "worker": worker.number, "nice": _LOW_PRIORITY})

    async def close(self) -> None:
        """End it and its workers; returns when they are gone."""
        self._alive = False
        if self._listener is not None:
            self._listener.cancel()
        self._control.close()
        for worker in self._workers.values():
            worker.hang_up()
        try:
            await asyncio.to_thread(self._process.wait, _CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its workers die with it
            self._process.wait()

    async def _import(self) -> None:
        """Have it import; raises RewardLoadError where the code of a reward is at fault, else RewardError."""
        self._control.send(pack({"kinds": self._kinds, "memory_mb": self._memory_mb}))
        failed = f"the rewards {', '.join(self._kinds)} did not start"
        try:
            ready = await asyncio.wait_for(self._receive(), _START_LIMIT_S)
        except TimeoutError:
            raise RewardError(f"{failed}: not ready after {_START_LIMIT_S:.0f} s") from None
        if not ready:
            raise RewardError(f"{failed}: ended with status {self._process.wait()}")
        if ready["problem"] is not None:
            error = RewardLoadError if ready["final"] else RewardError
            raise error(f"{failed}: {ready['problem']}")

    def _order(self, order: Message, descriptors: Sequence[int] = ()) -> None:
        if not self._alive:
            return
        with suppress(ConnectionError):  # it has just died: whoever listens to it is about to hear
            socket.send_fds(self._control, [pack(order)], descriptors)

    async def _listen(self, on_exit: Callable[[Worker], None], on_death: Callable[[], None]) -> None:
        while message := await self._receive():
            worker = self._workers.pop(message["exited"])
            worker.exited(message["status"])
            on_exit(worker)
        self._alive = False
        for worker in self._workers.values():
            worker.hang_up()
        on_death()

    async def _receive(self) -> Message | None:
        try:
            packet = await asyncio.get_running_loop().sock_recv(self._control, MAX_PACKET_BYTES)
        except OSError:
            return None
        return unpack(packet) if packet else None


def _environment() -> dict[str, str]:
    """Ours, with the modules that we can import and with one thread a process."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
