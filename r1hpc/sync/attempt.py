"""One attempt to give some engines all weights: payload by payload, each engine by itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any

from r1hpc.errors import R1hpcError
from r1hpc.rollout.engine_args import WEIGHT_LOADER
from r1hpc.rollout.engine_control import EngineControl, EngineControlError
from r1hpc.stopwatch import Stopwatch
from r1hpc.sync.endpoint import Couriers, EngineEndpoint
from r1hpc.sync.outline import TURNS, SyncError, SyncOutcome, SyncOutline, SyncTimeoutError
from r1hpc.sync.report import SyncReport

NO_VERSION = "default"
"""What SGLang calls weights that nobody published: protocol.BOOT_VERSION."""


def longest_take_s(timeout_s: float) -> float:
    """How long an engine may keep one payload, of the whole time; then it is given up."""
    return timeout_s / 4


class Attempt:
    """Drives trainers and engines through one sync. Used once."""

    def __init__(
        self,
        couriers: Couriers,
        engines: Sequence[EngineEndpoint],
        version: int,
        timeout_s: float,
        full_check: bool,
    ) -> None:
        self._couriers = couriers
        self._engines = engines
        self._version = version
        self._timeout_s = timeout_s
        self._full_check = full_check
        self._failed: dict[str, str] = {}
        self._clock = Stopwatch()
        self._taking = {engine.name: Stopwatch() for engine in engines}

    async def run(self) -> SyncReport:
        """What came of it; raises what the trainers raise, and SyncTimeoutError past the deadline."""
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._run()
        except TimeoutError as error:
            raise SyncTimeoutError(
                f"weights {self._version}: not with the engines within {self._timeout_s:g} s (sync.timeout_s);"
                f" {len(self._failed)} of {len(self._engines)} had failed by then"
            ) from error

    async def _run(self) -> SyncReport:
        await self._each(self._open(engine) for engine in self._engines)
        outcomes: list[SyncOutcome] = []
        try:
            outline = await self._couriers.begin_sync([engine.target for engine in self._engines], self._full_check)
            with self._clock.part("send"):
                await self._send(outline)
        finally:
            outcomes = await self._couriers.end_sync()
        with self._clock.part("check"):
            self._judge(outcomes)
            await self._each(self._stamp(engine) for engine in self._alive)
        return SyncReport(
            version=self._version,
            published=tuple(engine.name for engine in self._alive),
            failed=self._failed,
            buckets=outline.buckets,
            bytes_per_gpu=outline.bytes_per_gpu,
            seconds={
                **_slowest([outcome.seconds for outcome in outcomes]),
                **_slowest([taking.seconds for taking in self._taking.values()]),
                **self._clock.seconds,
            },
        )

    @property
    def _alive(self) -> list[EngineEndpoint]:
        return [engine for engine in self._engines if engine.name not in self._failed]

    async def _send(self, outline: SyncOutline) -> None:
        """The next payload is prepared while the engines take one; asked for early, so trainers do not wait for us."""
        first = range(min(TURNS, outline.buckets))
        offers = deque(asyncio.create_task(self._couriers.offer(bucket)) for bucket in first)
        try:
            for bucket in range(outline.buckets):
                payloads = await offers.popleft()
                if not self._alive:
                    return
                await self._each(self._take(engine, payloads) for engine in self._alive)
                if bucket + TURNS < outline.buckets:
                    # In the memory of this one, which the engines are done with.
                    offers.append(asyncio.create_task(self._couriers.offer(bucket + TURNS)))
        except asyncio.CancelledError:
            for offer in offers:
                offer.cancel()
            raise
        finally:
            await asyncio.gather(*offers, return_exceptions=True)

    async def _take(self, engine: EngineEndpoint, payloads: Sequence[str | None]) -> None:
        mine = [payload for rank in engine.ranks if (payload := payloads[rank]) is not None]
        assert len(mine) == len(engine.ranks), f"{engine.name}: {len(mine)} payloads for {len(engine.ranks)} ranks"
        with self._taking[engine.name].part("take"):
            await self._guarded(
                engine, engine.control.update_weights(mine, WEIGHT_LOADER, longest_take_s(self._timeout_s))
            )

    async def _open(self, engine: EngineEndpoint) -> None:
        await self._guarded(engine, self._opened(engine))

    async def _opened(self, engine: EngineEndpoint) -> None:
        # From here on it has no version, whatever becomes of this: its replies say so, and are dropped.
        await engine.control.set_weight_version(NO_VERSION)
        if engine.known.bracketed_update:
            with contextlib.suppress(EngineControlError):
                await engine.control.end_weight_update()  # left open by an attempt that failed
            await engine.control.begin_weight_update()

    async def _stamp(self, engine: EngineEndpoint) -> None:
        await self._guarded(engine, self._stamped(engine.control, engine.known.bracketed_update))

    async def _stamped(self, control: EngineControl, bracketed: bool) -> None:
        if bracketed:
            await control.end_weight_update()
        await control.flush_cache()
        await control.set_weight_version(str(self._version))
        if (said := await control.weight_version()) != str(self._version):
            raise SyncError(f"{control.url} says that its weights are {said}, not {self._version}")

    def _judge(self, outcomes: Sequence[SyncOutcome]) -> None:
        for engine in self._alive:
            faults = [f"rank {rank}: {fault}" for rank in engine.ranks for fault in outcomes[rank].faults]
            if faults:
                self._failed[engine.name] = "; ".join(faults)

    async def _guarded(self, engine: EngineEndpoint, work: Coroutine[Any, Any, None]) -> None:
        """Do it; what goes wrong is this engine's alone."""
        try:
            await work
        except R1hpcError as error:
            self._failed[engine.name] = str(error)

    async def _each(self, works: Iterable[Coroutine[Any, Any, None]]) -> None:
        await asyncio.gather(*works)


def _slowest(everyones: Sequence[Mapping[str, float]]) -> dict[str, float]:
    parts = {part for seconds in everyones for part in seconds}
    return {part: max(seconds.get(part, 0.0) for seconds in everyones) for part in sorted(parts)}
