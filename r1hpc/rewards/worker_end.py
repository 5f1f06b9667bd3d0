"""The pool's end of one worker: what it was asked, and what became of that."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from r1hpc.rewards.frames import HEADER_BYTES, body_bytes, unpack
from r1hpc.rewards.request import Outcome


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
        if not self.alive:
            transport.abort()

    def ask(self, questions: Sequence[bytes]) -> list[asyncio.Future[Answer]]:
        """Have it grade them, each a frame. If the process ends, the one it was at gets an answer, those after it are
        cancelled; if all processes end with the one that they were forked from, all are cancelled."""
        assert self.alive and not self._waiting and self._transport is not None, "a free worker"
        loop = asyncio.get_running_loop()
        answers: list[asyncio.Future[Answer]] = [loop.create_future() for _ in questions]
        self._waiting.extend(answers)
        self._transport.write(b"".join(questions))
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
