"""In which order payloads are asked for, prepared and taken; with couriers and an engine that only note it.

What they really do is in test_publish and test_engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from r1hpc.rollout.engine_control import EngineControl
from r1hpc.rollout.versions import capabilities
from r1hpc.sync.attempt import Attempt
from r1hpc.sync.endpoint import EngineEndpoint
from r1hpc.sync.outline import TURNS, SyncError, SyncOutcome, SyncOutline, SyncTarget

BUCKETS = 6
DEADLINE_S = 30.0
Event = tuple[str, int]


class NotedCouriers:
    """Prepare payloads one after the other, as trainers do."""

    def __init__(
        self, events: list[Event], prepare_s: float = 0.0, *, slow: bool = False, fail_at: int | None = None
    ) -> None:
        """slow: none is ready before the next one is asked for."""
        self._events = events
        self._prepare_s = prepare_s
        self._slow = slow
        self._asked = [asyncio.Event() for _ in range(BUCKETS)]
        self._fail_at = fail_at
        self._one_by_one = asyncio.Lock()

    async def begin_sync(self, targets: Sequence[SyncTarget], full_check: bool = False) -> SyncOutline:
        return SyncOutline(buckets=BUCKETS, bytes_per_gpu=0, bucket_bytes=0, samples=())

    async def offer(self, bucket: int) -> list[str | None]:
        self._events.append(("asked", bucket))
        self._asked[bucket].set()
        async with self._one_by_one:
            await asyncio.sleep(self._prepare_s)
            if self._slow and bucket + 1 < BUCKETS:
                await asyncio.wait_for(self._asked[bucket + 1].wait(), DEADLINE_S)
            self._events.append(("ready", bucket))
        if self._fail_at is not None and bucket >= self._fail_at:
            raise SyncError(f"payload {bucket} cannot be made")
        return [str(bucket)]

    async def end_sync(self) -> list[SyncOutcome]:
        self._events.append(("end", 0))
        return [SyncOutcome()]


class NotedEngine(EngineControl):
    """Takes payloads for so long."""

    def __init__(self, events: list[Event], take_s: float = 0.0, *, fail_at: int | None = None) -> None:
        super().__init__("http://127.0.0.1:9")
        self._events = events
        self._take_s = take_s
        self._fail_at = fail_at
        self._version = ""

    async def update_weights(self, payloads: Sequence[str], loader: str, timeout_s: float | None = None) -> None:
        await asyncio.sleep(self._take_s)
        number = int(payloads[0])
        if number == self._fail_at:
            raise SyncError(f"payload {number} was refused")
        self._events.append(("taken", number))

    async def set_weight_version(self, version: str) -> None:
        self._version = version

    async def weight_version(self) -> str:
        return self._version

    async def begin_weight_update(self) -> None: ...

    async def end_weight_update(self) -> None: ...

    async def flush_cache(self) -> None: ...


def attempt(couriers: NotedCouriers, engine: NotedEngine, timeout_s: float = 60.0) -> Attempt:
    return Attempt(couriers, [EngineEndpoint("engine", engine, capabilities("0.5.21"), (0,))], 3, timeout_s, False)


@pytest.mark.parametrize("trainers_are_slow", [True, False])
def test_a_payload_is_asked_for_as_soon_as_its_memory_is_free(trainers_are_slow: bool) -> None:
    async def run() -> tuple[str, ...]:
        couriers = NotedCouriers(events, slow=trainers_are_slow)
        report = await attempt(couriers, NotedEngine(events, 0.0 if trainers_are_slow else 0.01)).run()
        return report.published

    events: list[Event] = []
    assert asyncio.run(run()) == ("engine",)
    assert [number for what, number in events if what == "taken"] == list(range(BUCKETS))
    assert events[:TURNS] == [("asked", number) for number in range(TURNS)]
    for number in range(TURNS, BUCKETS):
        # In no other moment: the engine is done with what lay there.
        assert events[events.index(("asked", number)) - 1] == ("taken", number - TURNS)


def test_what_was_asked_for_early_is_done_before_a_failed_sync_ends() -> None:
    async def run() -> None:
        await attempt(NotedCouriers(events, fail_at=2), NotedEngine(events)).run()

    events: list[Event] = []
    with pytest.raises(SyncError, match="payload 2 cannot be made"):
        asyncio.run(run())
    assert events[-2:] == [("ready", 3), ("end", 0)]


def test_no_payload_is_made_for_an_engine_that_failed_beyond_those_asked_for() -> None:
    async def run() -> dict[str, str]:
        report = await attempt(NotedCouriers(events), NotedEngine(events, fail_at=1)).run()
        return dict(report.failed)

    events: list[Event] = []
    assert asyncio.run(run()) == {"engine": "payload 1 was refused"}
    assert ("asked", 1 + TURNS + 1) not in events
    assert events[-1] == ("end", 0)
    assert {n for what, n in events if what == "asked"} == {n for what, n in events if what == "ready"}


def test_trainers_that_hang_are_not_waited_for_beyond_the_deadline() -> None:
    async def run() -> None:
        await attempt(NotedCouriers(events, 600.0), NotedEngine(events), timeout_s=1.0).run()

    events: list[Event] = []
    with pytest.raises(SyncError, match=r"not with the engines within 1 s"):
        asyncio.run(asyncio.wait_for(run(), DEADLINE_S))
    assert events == [("asked", 0), ("asked", 1), ("end", 0)]
