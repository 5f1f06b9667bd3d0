"""Stop requests where they meet asynchronous work: it is cancelled at once, or may end if there is time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from r1hpc.cluster.rollcall import SILENCE_S
from r1hpc.cluster.stop import StopListener
from r1hpc.errors import R1hpcError

logger = logging.getLogger(__name__)

T = TypeVar("T")

UNWIND_S = 5.0
"""For work that is cancelled to leave things in order."""
TOLD_S = SILENCE_S + 5.0
"""After a fault, until the head's agent has heard of a lost node, or of a job that is taken away."""


class StopRequested(R1hpcError):
    """Somebody asked the attempt to stop."""


class OutOfTime(R1hpcError):
    """The allocation ends before another iteration would."""


class Interrupt:
    """The stop requests of an attempt, heard by the event loop that makes this."""

    def __init__(self, listener: StopListener) -> None:
        self._listener = listener
        self._asked = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        listener.call(self._tell)

    def _tell(self) -> None:
        """Called by the listener's thread, which outlives the loop."""
        logger.info("asked to stop by %s", self.requested)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._asked.set)

    @property
    def requested(self) -> str | None:
        """Who asked; None while nobody has."""
        return self._listener.requested

    def check(self, doing: str) -> None:
        """Raise StopRequested if somebody has asked."""
        if self.requested is not None:
            raise StopRequested(f"asked to stop by {self.requested} {doing}")

    async def hear(self, seconds: float, doing: str) -> None:
        """Give whoever may be about to ask the time to do so. Raises StopRequested then."""
        await self.unless(asyncio.sleep(seconds), doing)

    async def unless(self, work: Coroutine[Any, Any, T], doing: str) -> T:
        """The result of `work`, which a stop request cancels. Raises StopRequested once it has unwound, or will not."""
        return await self.within(work, doing, lambda: 0.0)

    async def within(self, work: Coroutine[Any, Any, T], doing: str, patience_s: Callable[[], float]) -> T:
        """The result of `work`. From a stop request on it has `patience_s()` more seconds, then it is cancelled.

        Raises StopRequested where it did not end in time: what it was doing must be taken for lost.
        """
        task = asyncio.get_running_loop().create_task(work)
        asked = asyncio.get_running_loop().create_task(self._asked.wait())
        try:
            await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=patience_s())
            if task.done():
                return task.result()
        finally:
            asked.cancel()
            if not task.done():
                task.cancel()
                # Whoever asked may not wait for an engine that does not answer; what is left over ends with us.
                await asyncio.wait({task}, timeout=UNWIND_S)
        raise StopRequested(f"asked to stop by {self.requested} {doing}")
