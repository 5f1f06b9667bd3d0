"""The pool's end of the processes: fork them, ask them, end them."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from r1hpc.rewards.frames import HEADER_BYTES, Message, body_bytes, frame, pack, unpack
from r1hpc.rewards.nursery import MAX_PACKET_BYTES
from r1hpc.rewards.request import Outcome, RewardError

_START_LIMIT_S = 60.0
_CLOSE_LIMIT_S = 5.0
_LOW_PRIORITY = 10
_MAX_ANSWERS = 2_000
"""After so many a worker is replaced, before what it has left lying about reaches its memory limit."""


@dataclass(frozen=True)
class Answer:
    """What became of one question to a worker."""

    outcome: Outcome
    values: tuple[float, ...] = ()
    detail: str = ""


class Worker(asyncio.Protocol):
    """One process; it answers the questions it is asked in order."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.num_answers = 0
        self.alive = True
        self.ready: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        """The first answer is to no question: the process is there."""
        self._waiting = deque([self.ready])
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, questions: Sequence[Message]) -> list[asyncio.Future[Answer]]:
        """Have it grade them. If the process ends, the one it was at gets an answer, those after it are cancelled."""
        assert self.alive and not self._waiting and self._transport is not None, "a free worker"
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[Answer]] = [loop.create_future() for _ in questions]
        self._waiting.extend(answers)
        self._transport.write(b"".join(map(frame, questions)))
        return answers

    def data_received(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= HEADER_BYTES:
            end = HEADER_BYTES + body_bytes(self._received)
            if len(self._received) < end:
                return
            reply = unpack(self._received[HEADER_BYTES:end])
            del self._received[:end]
            self._settle(Answer(reply["outcome"], tuple(reply["values"]), reply["detail"]))

    def exited(self, status: int) -> None:
        """Its process is gone; status: negative for a signal."""
        if self.alive and self._waiting:
            cause = f"signal {-status}" if status < 0 else f"exit status {status}"
            self._settle(Answer("crashed", detail=f"the process that graded it ended with {cause}"))
        self.hang_up()

    def hang_up(self) -> None:
        """Expect nothing more of it; its process leaves when it next looks for a question."""
        self.alive = False
        if self._transport is not None:
            self._transport.abort()
        while self._waiting:
            self._waiting.popleft().cancel()

    def _settle(self, answer: Answer) -> None:
        self.num_answers += 1
        if self._waiting and not (waiting := self._waiting.popleft()).done():
            waiting.set_result(answer)
        if answer.outcome == "memory":
            self.alive = False  # it is about to leave


class Workers:
    """Forked workers: some idle ones in store, more whenever they are needed."""

    def __init__(self, kinds: Sequence[str], memory_mb: int, num_idle: int) -> None:
        self._kinds = list(kinds)
        self._memory_mb = memory_mb
        self._num_idle = num_idle
        self._numbers = itertools.count()
        self._workers: dict[int, Worker] = {}
        self._idle: list[Worker] = []
        self._forking: set[asyncio.Task[None]] = set()
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done when the nursery is gone though nobody closed it; why."""
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start the nursery and have it import; raises RewardError with its reason if it cannot."""
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "r1hpc.rewards.nursery", str(os.getpid()), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=_environment(),
            )
        self._control.send(pack({"kinds": self._kinds, "memory_mb": self._memory_mb}))
        try:
            ready = await asyncio.wait_for(self._receive(), _START_LIMIT_S)
        except TimeoutError:
            problem = f"not ready after {_START_LIMIT_S:.0f} s"
        else:
            problem = ready["problem"] if ready else f"ended with status {self._process.wait()}"
        if problem is not None:
            await self.close()
            raise RewardError(f"the rewards {', '.join(self._kinds)} did not start: {problem}")
        self._listener = asyncio.create_task(self._listen())
        for _ in range(self._num_idle):
            self._idle.append(await self._fork())

    async def take(self) -> Worker:
        """A free worker, from the store or new."""
        while self._idle:
            worker = self._idle.pop()
            if worker.alive:
                return worker
        return await self._fork()

    def give_back(self, worker: Worker) -> None:
        """A worker that has answered."""
        if worker.alive and worker.num_answers < _MAX_ANSWERS:
            self._idle.append(worker)
        else:
            worker.hang_up()
            self.restock()

    def end(self, worker: Worker) -> None:
        """Kill a worker, whatever it does."""
        worker.hang_up()
        self._order({"do": "kill", "worker": worker.number})
        self.restock()

    def set_aside(self, worker: Worker) -> None:
        """Let it go on with low priority, and have another one in its place."""
        self._order({"do": "nice", "worker": worker.number, "nice": _LOW_PRIORITY})
        self.restock()

    def restock(self) -> None:
        """See to it that idle workers are there, in the background."""
        if len(self._idle) + len(self._forking) < self._num_idle and not self.lost.done():
            task = asyncio.create_task(self._fork_one())
            self._forking.add(task)
            task.add_done_callback(self._forking.discard)

    async def close(self) -> None:
        """End all processes; returns when they are gone."""
        if not self.lost.done():
            self.lost.cancel()
        if self._process is None:
            return
        for task in self._forking:
            task.cancel()
        self._control.close()
        for worker in self._workers.values():
            worker.hang_up()
        try:
            await asyncio.to_thread(self._process.wait, _CLOSE_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its workers die with it
            self._process.wait()

    async def _fork_one(self) -> None:
        self._idle.append(await self._fork())

    async def _fork(self) -> Worker:
        ours, theirs = socket.socketpair()
        worker = Worker(next(self._numbers))
        self._workers[worker.number] = worker
        with theirs:
            self._order({"do": "fork", "worker": worker.number}, [theirs.fileno()])
        await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=ours)
        if (await worker.ready).outcome != "graded":
            raise RewardError(f"a new reward process did not start: {worker.ready.result().detail}")
        return worker

    def _order(self, order: Message, descriptors: Sequence[int] = ()) -> None:
        if self.lost.done():
            return
        socket.send_fds(self._control, [pack(order)], descriptors)

    async def _listen(self) -> None:
        while message := await self._receive():
            worker = self._workers.pop(message["exited"])
            worker.exited(message["status"])
            if worker in self._idle:
                self._idle.remove(worker)
        if not self.lost.done():
            self.lost.set_result("the process that workers are forked from died; out of memory, or killed")

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
