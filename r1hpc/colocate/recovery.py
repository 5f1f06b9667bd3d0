"""Engines that went down are started again and given weights, each alone, while the others serve."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from r1hpc.errors import R1hpcError

logger = logging.getLogger(__name__)

ATTEMPTS = 2
"""In one rollout: what kills an engine twice would kill it again."""


class Restarts(Protocol):
    """The engines."""

    async def restart(self, name: str, deadline_s: float) -> None:
        """End and start one."""

    def report_down(self, name: str, reason: str) -> None:
        """Say that one is of no use as it is."""


class Recovery:
    """At most one attempt at an engine at any time. What does not come back in time does at the next rollout."""

    def __init__(
        self,
        engines: Restarts,
        rejoin: Callable[[str], Awaitable[None]],
        given_up: Callable[[str], None],
        deadline_s: float,
    ) -> None:
        """rejoin: gives a healthy engine weights and lets it serve; raises R1hpcError where that fails.

        given_up: is told of an engine that did not come back.
        """
        self._engines = engines
        self._rejoin = rejoin
        self._given_up = given_up
        self._deadline_s = deadline_s
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def under_way(self) -> list[str]:
        """Engines that are being brought back."""
        return list(self._tasks)

    def begin(self, name: str) -> None:
        """Bring an engine back, unless that is being done already."""
        if name not in self._tasks:
            self._tasks[name] = asyncio.get_running_loop().create_task(self._run(name), name=f"bring back {name}")

    async def stop(self) -> None:
        """Leave alone what has not come back; it is down, and may have processes."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._tasks.clear()  # a task that was cancelled before it ran has not removed itself

    async def _run(self, name: str) -> None:
        try:
            is_back = await self._bring_back(name)
        finally:
            self._tasks.pop(name, None)
        if not is_back:
            logger.warning("the rollout goes on without %s; it is started again for the next one", name)
            self._given_up(name)

    async def _bring_back(self, name: str) -> bool:
        began = time.monotonic()
        for attempt in range(1, ATTEMPTS + 1):
            left = self._deadline_s - (time.monotonic() - began)
            if left <= 0:
                break
            try:
                await self._engines.restart(name, left)
                await self._rejoin(name)
            except R1hpcError as error:
                logger.warning("%s did not come back (attempt %d of %d): %s", name, attempt, ATTEMPTS, error)
                self._engines.report_down(name, str(error))
            except Exception:
                # Nobody awaits this task before the rollout ends.
                logger.exception("%s cannot be brought back", name)
                self._engines.report_down(name, "bringing it back failed")
                break
            else:
                logger.info("%s is back, %.0f s after it went down", name, time.monotonic() - began)
                return True
        return False
