"""All trainer ranks as one, led by the first: it speaks to the engines and tells the others what to do next.

A driver that asked every rank for every payload would need 40 ms for 128 of them (docs/performance.md), while a payload
takes 20. So it asks once for a whole sync, and the ranks go through it among themselves.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from r1hpc.checkpoint.collective import everyones, first_ranks
from r1hpc.sync.outline import SyncOutcome, SyncOutline, SyncTarget
from r1hpc.sync.publisher import WeightPublisher

T = TypeVar("T")

_LENGTH_BYTES = 8


class Crew:
    """Of one sync or several: the first rank leads, the others follow, at the same time.

    What a rank raises ends its part at once, for then it is raised on every rank; or on one alone, and the others wait
    for it in vain, which only somebody outside can see. Either way `WeightPublisher.end` is still to be called.
    """

    def __init__(self, publisher: WeightPublisher) -> None:
        self._publisher = publisher
        self._orders: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._failure: Exception | None = None

    def follow(self) -> None:
        """On every rank but the first: do what that says until it is done."""
        while (order := first_ranks(None)) is not None:
            self._do(*order)

    def lead(self, story: Callable[[Crew], Coroutine[Any, Any, T]]) -> T:
        """On the first rank: what the coroutine returns, which is given these ranks to send weights with.

        It runs in a thread of its own. What it asks of the ranks is done in the caller's, whose GPU and modes of torch
        are the right ones.
        """
        told: Future[T] = Future()
        thread = threading.Thread(target=self._tell, args=(story, told), name="sync", daemon=True)
        thread.start()
        while (order := self._orders.get()) is not None:
            self._carry_out(*order)
        thread.join()
        if self._failure is not None:
            raise self._failure  # whatever became of the story: the others have raised it, too
        first_ranks(None)  # to the others: it is over
        return told.result()

    async def begin_sync(self, targets: Sequence[SyncTarget], full_check: bool = False) -> SyncOutline:
        """See Couriers, as for what follows."""
        outline: SyncOutline = await self._ask("begin", tuple(targets), full_check)
        return outline

    async def offer(self, bucket: int) -> list[str | None]:
        payloads: list[str | None] = await self._ask("offer", bucket)
        return payloads

    async def end_sync(self) -> list[SyncOutcome]:
        if self._failure is not None:
            return []  # the others do not listen any more
        ending = asyncio.ensure_future(self._ask("end"))
        try:
            outcomes: list[SyncOutcome] = await asyncio.shield(ending)
        except asyncio.CancelledError:
            await asyncio.wait({ending})  # else nobody would give the memory back
            raise
        return outcomes

    def _tell(self, story: Callable[[Crew], Coroutine[Any, Any, T]], told: Future[T]) -> None:
        try:
            told.set_result(asyncio.run(story(self)))
        except BaseException as error:
            told.set_exception(error)
        finally:
            self._orders.put(None)

    async def _ask(self, *order: Any) -> Any:
        """Orders are carried out one by one; one that nobody waits for any more is not begun."""
        answer: Future[Any] = Future()
        self._orders.put((lambda: self._ordered(order), answer))
        return await asyncio.wrap_future(answer)

    def _carry_out(self, work: Callable[[], Any], answer: Future[Any]) -> None:
        if not answer.set_running_or_notify_cancel():
            return
        try:
            answer.set_result(work())
        except Exception as error:
            # Its frames hold payloads, whose memory the engine needs next.
            self._failure = self._failure or error.with_traceback(None)
            answer.set_exception(self._failure)

    def _ordered(self, order: tuple[Any, ...]) -> Any:
        if self._failure is not None:
            raise self._failure
        first_ranks(order)
        return self._do(*order)

    def _do(self, what: str, *arguments: Any) -> Any:
        """This rank's part of an order; on the first rank the answer of all."""
        if what == "begin":
            return self._publisher.begin(*arguments)
        if what == "offer":
            return _texts_of_all(self._publisher.offer(*arguments))
        return everyones(self._publisher.end())


def _texts_of_all(mine: str | None) -> list[str | None]:
    """By rank, on the first one; [] on others. Two small messages each, where a gather of objects has a hundred."""
    data = b"" if mine is None else mine.encode()
    longest = torch.tensor([len(data)])
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    sent = torch.zeros(_LENGTH_BYTES + int(longest), dtype=torch.uint8)
    sent[:_LENGTH_BYTES].view(torch.int64).fill_(-1 if mine is None else len(data))
    if data:
        sent[_LENGTH_BYTES : _LENGTH_BYTES + len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    first = dist.get_rank() == 0
    received = [torch.empty_like(sent) for _ in range(dist.get_world_size())] if first else None
    dist.gather(sent, received)
    return [_text(each) for each in received or []]


def _text(received: Tensor) -> str | None:
    length = int(received[:_LENGTH_BYTES].view(torch.int64))
    return None if length < 0 else received[_LENGTH_BYTES : _LENGTH_BYTES + length].numpy().tobytes().decode()
