"""Forked workers: some idle ones in store, more whenever they are needed, and a new nursery where one was killed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from r1hpc.rewards.nursery_end import NurseryDiedError, NurseryEnd
from r1hpc.rewards.request import RewardError
from r1hpc.rewards.worker_end import Worker

_LOG = logging.getLogger(__name__)
_MAX_ANSWERS = 2_000
"""After so many a worker is replaced, before what it has left lying about reaches its memory limit."""
_MAX_STILLBORN = 5
"""One may be killed before it has said a word; not all that are forked in a row."""
MAX_RESTARTS = 3
"""Within RESTARTS_WITHIN_S. A run of weeks may lose a nursery now and then; an answer that kills it each time may not
be tried for ever."""
RESTARTS_WITHIN_S = 600.0


class Workers:
    """Processes of one nursery at a time; whoever waits for an answer when it dies has the question asked again."""

    def __init__(self, kinds: Sequence[str], memory_mb: int, num_idle: int) -> None:
        self._kinds = tuple(kinds)
        self._memory_mb = memory_mb
        self._num_idle = num_idle
        self._idle: list[Worker] = []
        self._forking: set[asyncio.Task[None]] = set()
        self._restarting: set[asyncio.Task[None]] = set()
        self._nursery: NurseryEnd | None = None
        self._up = asyncio.Event()
        """Set while there is a nursery, and when there will be none any more."""
        self._deaths: list[float] = []
        self._closed = False
        self.num_restarts = 0
        self.lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Done when nurseries have died too often, or a new one does not start; why."""

    async def start(self) -> None:
        """Start the nursery and have it import; raises RewardError with its reason if it cannot."""
        nursery = NurseryEnd(self._kinds, self._memory_mb)
        await nursery.start(self._on_exit, self._on_death)
        self._nursery = nursery
        self._up.set()
        for _ in range(self._num_idle):
            self._idle.append(await self._fork())

    async def take(self) -> Worker:
        """A free worker, from the store or new. Raises RewardError where there can be none any more."""
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
        if self._nursery is not None:
            self._nursery.kill(worker)
        self.restock()

    def set_aside(self, worker: Worker) -> None:
        """Let it go on with low priority, and have another one in its place."""
        if self._nursery is not None:
            self._nursery.lower_priority(worker)
        self.restock()

    def restock(self) -> None:
        """See to it that idle workers are there, in the background."""
        if len(self._idle) + len(self._forking) < self._num_idle and self._up.is_set() and not self.lost.done():
            self._in_background(self._fork_one(), self._forking)

    async def close(self) -> None:
        """End all processes; returns when they are gone."""
        self._closed = True
        self.lost.cancel()
        tasks = self._forking | self._restarting
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._nursery is not None:
            await self._nursery.close()

    async def _fork_one(self) -> None:
        self._idle.append(await self._fork())

    async def _fork(self) -> Worker:
        num_dead = 0
        while True:
            await self._up.wait()
            if self.lost.done() or self._nursery is None:
                raise RewardError("the reward processes are gone")
            try:
                return await self._nursery.fork()
            except NurseryDiedError:
                continue  # until there is another one, or none any more
            except RewardError:
                num_dead += 1
                if num_dead == _MAX_STILLBORN:
                    raise

    def _on_exit(self, worker: Worker) -> None:
        if worker in self._idle:
            self._idle.remove(worker)

    def _on_death(self) -> None:
        """Start another nursery, unless that has been done too often of late."""
        if self._closed:
            return
        self._up.clear()
        self._idle.clear()
        now = time.monotonic()
        self._deaths = [death for death in self._deaths if now - death < RESTARTS_WITHIN_S] + [now]
        if len(self._deaths) > MAX_RESTARTS:
            self._give_up(
                f"the process that workers are forked from was killed {len(self._deaths)} times within "
                f"{RESTARTS_WITHIN_S / 60:.0f} minutes and restarted {MAX_RESTARTS} times; out of memory, or a reward "
                "function that kills its parent: see the kernel's log and the function"
            )
            return
        _LOG.warning("the process that reward workers are forked from died: restart %d", self.num_restarts + 1)
        self._in_background(self._restart(), self._restarting)

    async def _restart(self) -> None:
        assert self._nursery is not None, "it has died"
        await self._nursery.close()
        nursery = NurseryEnd(self._kinds, self._memory_mb)
        try:
            await nursery.start(self._on_exit, self._on_death)
        except RewardError as error:
            self._give_up(f"the process that workers are forked from died, and a new one does not start: {error}")
            return
        self.num_restarts += 1
        self._nursery = nursery
        self._up.set()
        for _ in range(self._num_idle):
            self.restock()

    def _give_up(self, reason: str) -> None:
        if not self.lost.done():
            self.lost.set_result(reason)
        self._up.set()

    def _in_background(self, work: Coroutine[Any, Any, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._closed:
            self._give_up(f"{type(error).__name__}: {error}")
