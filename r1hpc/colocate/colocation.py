"""Who has the GPUs: the engines in a rollout, the trainers in an update. Entering a phase puts the other to sleep."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any

from r1hpc.actors.engines import EngineGroup
from r1hpc.actors.trainers import TrainerGroup
from r1hpc.colocate.free_memory import wait_until_free
from r1hpc.colocate.idle import busy_engines
from r1hpc.colocate.needs import WakingNeeds
from r1hpc.colocate.recovery import Recovery
from r1hpc.config.run_time import SyncConfig
from r1hpc.errors import R1hpcError
from r1hpc.rollout.dispatch import Dispatcher
from r1hpc.stopwatch import Stopwatch
from r1hpc.sync.report import SyncReport

logger = logging.getLogger(__name__)

_MEMORY_S = 60.0
"""For what was released to be free: seconds at most, unless somebody else has it."""
_BREAK_OFF_S = 2.0
"""For a sync that is cancelled to come to its end by itself. Whoever cancels waits for 5 (r1hpc.interrupt)."""
_BRING_BACK_S = 1800.0
"""For an engine that died in a rollout: it reads its checkpoint again. Past them the others finish without it."""


Entering = Callable[[Coroutine[Any, Any, None]], Awaitable[None]]


async def _uninterrupted(work: Coroutine[Any, Any, None]) -> None:
    await work


class ColocationError(R1hpcError):
    """No engine has the weights."""


class Colocation:
    """The two phases. Where entering one fails, or its body raises, either may be entered again.

    That holds because nothing is assumed of the phase before: each step looks at what is the case and does the rest.
    Trainers know whether they sleep, an engine what it has memory for and which weights; an engine about which there is
    doubt has its processes ended, and then has no memory at all.
    """

    def __init__(
        self,
        trainers: TrainerGroup,
        engines: EngineGroup | None,
        dispatcher: Dispatcher | None,
        needs: WakingNeeds,
        sync: SyncConfig,
        *,
        memory_s: float = _MEMORY_S,
        bring_back_s: float = _BRING_BACK_S,
    ) -> None:
        """The trainers are awake and have weights; no engines where recorded rollouts are replayed.

        The dispatcher's on_down is `engines.report_down`.
        """
        self.version = 0
        """Of the trainers' weights; whoever changes them says so."""
        self.last_sync: SyncReport | None = None
        self._trainers = trainers
        self._engines = engines
        self._dispatcher = dispatcher
        self._needs = needs
        self._sync = sync
        self._memory_s = memory_s
        self._syncing = asyncio.Lock()
        self._trainers_sleep = False
        self._in_rollout = False
        self._hopeless = asyncio.Event()
        """No engine serves, and none comes back."""
        self._stopwatch = Stopwatch()
        self._recovery: Recovery | None = None
        if engines is not None:
            self._recovery = Recovery(engines, self._rejoin, self._given_up, bring_back_s)
            engines.listen(self._engine_down)

    @property
    def seconds(self) -> Mapping[str, float]:
        """By part of the phase switches, since `take_seconds`."""
        return self._stopwatch.seconds

    def take_seconds(self) -> Mapping[str, float]:
        """The same, to begin anew."""
        taken, self._stopwatch = self._stopwatch.seconds, Stopwatch()
        return taken

    @asynccontextmanager
    async def rollout_phase(self, entering: Entering = _uninterrupted) -> AsyncIterator[Dispatcher | None]:
        """The engines have the GPUs and the trainers' weights.

        The body is cancelled, and TrainerLost or ColocationError raised, when a trainer dies or no engine is left.
        entering: runs what enters the phase, and may cancel it.
        """
        await entering(self._to_engines())
        async with _ended_by(self._trainers.until_lost(), self._until_hopeless()):
            yield self._dispatcher

    @asynccontextmanager
    async def train_phase(self) -> AsyncIterator[TrainerGroup]:
        """The trainers have the GPUs, and the weights of the last update."""
        if self._engines is not None:
            await self._sleep_engines(self._engines)
        await self._wake_trainers()
        yield self._trainers

    async def _to_engines(self) -> None:
        await self._sleep_trainers()
        if self._engines is not None:
            await self._wake_engines(self._engines)

    async def close(self) -> None:
        """Bring no engine back any more."""
        self._in_rollout = False
        if self._recovery is not None:
            await self._recovery.stop()

    async def _sleep_trainers(self) -> None:
        if not self._trainers_sleep:
            with self._stopwatch.part("trainers_sleep"):
                # Said before it is done: the trainers do it even if we are cancelled while we wait for them.
                self._trainers_sleep = True
                await self._trainers.sleep()

    async def _wake_trainers(self) -> None:
        if self._trainers_sleep:
            with self._stopwatch.part("memory"):
                await wait_until_free(self._trainers, self._needs.trainers, "trainers", self._memory_s)
            with self._stopwatch.part("trainers_wake"):
                self._trainers_sleep = False
                await self._trainers.wake()

    async def _wake_engines(self, engines: EngineGroup) -> None:
        if not engines.hold_memory:  # else an earlier entry got so far
            with self._stopwatch.part("memory"):
                await wait_until_free(self._trainers, self._needs.engines, "engines", self._memory_s)
        with self._stopwatch.part("engines_wake"):
            await engines.resume_weights()
        if stale := [name for name in self._ready(engines) if engines.weight_version(name) != self.version]:
            with self._stopwatch.part("sync"):
                failed = await self._given_weights(engines, stale)
            for name, reason in failed.items():
                engines.report_down(name, f"it could not be given weights {self.version}: {reason}")
        with self._stopwatch.part("engines_wake"):
            await engines.resume_cache()
        self._serve(engines)

    def _serve(self, engines: EngineGroup) -> None:
        """Let every engine serve that has the weights, and bring the others back."""
        assert self._dispatcher is not None and self._recovery is not None
        ready = self._ready(engines)
        known = {status.name for status in self._dispatcher.engines if status.state != "down"}
        for name in ready:
            if name not in known:
                self._dispatcher.add(engines.client(name), self.version)
        self._dispatcher.publish(self.version, ready)
        self._in_rollout = True
        self._hopeless.clear()
        for name in set(engines.names) - set(engines.up):
            self._engine_down(name, "it went down before")

    def _ready(self, engines: EngineGroup) -> list[str]:
        """Engines that are up, without those that are on their way back: they are given weights by themselves."""
        assert self._recovery is not None
        return [name for name in engines.up if name not in self._recovery.under_way]

    async def _sleep_engines(self, engines: EngineGroup) -> None:
        assert self._dispatcher is not None and self._recovery is not None
        self._in_rollout = False
        with self._stopwatch.part("engines_sleep"):
            # A sync of one engine is nearly over, and its trainers must not be left in the middle of it.
            async with self._syncing:
                await self._recovery.stop()
            for name, why in (await busy_engines(engines)).items():
                engines.report_down(name, f"it is to sleep, and {why}")
            await engines.release_memory()
            down = set(engines.names) - set(engines.up)
            for name in down:
                self._take_out(name, "it is down")
            await engines.stop(down)

    async def _given_weights(self, engines: EngineGroup, names: list[str]) -> Mapping[str, str]:
        """Of these engines those that could not be given the weights, and why: they have to be started again."""
        self.last_sync = await self._publish(engines, names)
        return self.last_sync.failed

    async def _publish(self, engines: EngineGroup, names: list[str]) -> SyncReport:
        """Give these engines the weights. Not twice at a time: the trainers do one sync after another."""
        async with self._syncing:
            version = self.version
            syncing = asyncio.ensure_future(
                self._trainers.sync(
                    [engines.endpoint(name) for name in names],
                    version,
                    timeout_s=self._sync.timeout_s,
                    full_check=_is_due(version, self._sync.full_check_interval),
                )
            )
            try:
                report = await asyncio.shield(syncing)
            except asyncio.CancelledError:
                await self._broken_off(syncing, engines, names)
                raise
            engines.given(report.published, version)
            for name in set(report.retried) & set(report.published):
                logger.warning("%s: has weights %d after a second attempt", name, version)
        return report

    async def _broken_off(self, syncing: asyncio.Future[SyncReport], engines: EngineGroup, names: list[str]) -> None:
        """End a sync. Whoever cancelled it may have the trainers commit next: they do nothing else until it is over.

        What is not nearly over waits for engines: with their processes it ends.
        """
        await asyncio.wait({syncing}, timeout=_BREAK_OFF_S)
        if not syncing.done():
            for name in names:
                engines.report_down(name, "it took weights when that was broken off")
            await engines.stop(names)
            await asyncio.wait({syncing})
        if not syncing.cancelled() and (error := syncing.exception()) is not None:
            logger.warning("a sync that was broken off: %s", error)

    async def _rejoin(self, name: str) -> None:
        """Give an engine that was started again the weights, and let it serve. Raises R1hpcError."""
        assert self._engines is not None and self._dispatcher is not None
        report = await self._publish(self._engines, [name])
        if name in report.failed:
            raise ColocationError(f"{name} could not be given weights {report.version}: {report.failed[name]}")
        if name not in self._engines.up:
            raise ColocationError(f"{name} went down again after it was given weights")
        self._dispatcher.add(self._engines.client(name), report.version)

    def _engine_down(self, name: str, reason: str) -> None:
        """In a rollout the others have no use for its GPUs: bring it back. Else it waits for the next rollout."""
        self._take_out(name, reason)
        if self._in_rollout and self._recovery is not None:
            self._recovery.begin(name)

    def _given_up(self, name: str) -> None:
        assert self._engines is not None and self._recovery is not None
        if not self._engines.up and not self._recovery.under_way:
            self._hopeless.set()

    async def _until_hopeless(self) -> None:
        await self._hopeless.wait()
        raise ColocationError(
            "no engine is left: each went down and did not come back; the logs of the attempt have an"
            " engine*.log of each start"
        )

    def _take_out(self, name: str, reason: str) -> None:
        assert self._dispatcher is not None
        if any(status.name == name and status.state != "down" for status in self._dispatcher.engines):
            self._dispatcher.remove(name, reason)


@asynccontextmanager
async def _ended_by(*watches: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Cancel the body when a watch raises, and raise that in its place; watches end with the body."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(watch) for watch in watches]
            yield
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as errors:
        # One, be it the body's or a watch's: what follows from it is a cancellation, which is left out of the group.
        error = errors.exceptions[0]
        raise error from error.__cause__


def _is_due(version: int, interval: int | None) -> bool:
    return interval is not None and version % interval == 0
