"""Engines that went down: one attempt at a time, not for ever, and nothing goes on behind a phase's back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from r1hpc.colocate.recovery import ATTEMPTS, Recovery
from r1hpc.errors import R1hpcError


class Engines:
    """Counts starts; the first `failing` of them fail, and each takes until `may_start` is set."""

    def __init__(self, failing: int = 0) -> None:
        self.failing = failing
        self.may_start = asyncio.Event()
        self.starting = self.most_at_once = self.starts = self.cancelled = 0
        self.down: list[str] = []
        self.joined: list[str] = []
        self.given_up: list[str] = []

    async def restart(self, name: str, deadline_s: float) -> None:
        assert 0 < deadline_s <= 60
        self.starts += 1
        self.starting += 1
        self.most_at_once = max(self.most_at_once, self.starting)
        try:
            await self.may_start.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.starting -= 1
        if self.starts <= self.failing:
            raise R1hpcError("it does not come up")

    def report_down(self, name: str, reason: str) -> None:
        self.down.append(f"{name}: {reason}")

    async def rejoin(self, name: str) -> None:
        self.joined.append(name)

    def recovery(self, rejoin: Callable[[str], Awaitable[None]] | None = None) -> Recovery:
        return Recovery(self, rejoin or self.rejoin, self.given_up.append, 60)


async def ended(recovery: Recovery) -> None:
    async with asyncio.timeout(5):
        while recovery.under_way:
            await asyncio.sleep(0)


def test_an_engine_that_is_reported_twice_is_started_once() -> None:
    async def work() -> None:
        engines = Engines()
        recovery = engines.recovery()
        recovery.begin("engine0")
        await asyncio.sleep(0)
        recovery.begin("engine0")
        recovery.begin("engine1")
        assert recovery.under_way == ["engine0", "engine1"]
        engines.may_start.set()
        await ended(recovery)
        assert (engines.starts, engines.most_at_once) == (2, 2)
        assert sorted(engines.joined) == ["engine0", "engine1"]
        assert engines.given_up == engines.down == []
        recovery.begin("engine0")  # it may go down again later
        await ended(recovery)
        assert engines.starts == 3

    asyncio.run(work())


def test_a_second_attempt_may_succeed_and_a_third_is_not_made() -> None:
    async def outcome(failing: int) -> Engines:
        engines = Engines(failing)
        engines.may_start.set()
        recovery = engines.recovery()
        recovery.begin("engine0")
        await ended(recovery)
        return engines

    once, always = asyncio.run(outcome(1)), asyncio.run(outcome(9))
    assert (once.starts, once.joined, once.given_up) == (2, ["engine0"], [])
    assert (always.starts, always.joined, always.given_up) == (ATTEMPTS, [], ["engine0"])
    assert always.down == ["engine0: it does not come up"] * ATTEMPTS


def test_an_engine_that_is_not_given_the_weights_does_not_join() -> None:
    async def work() -> None:
        async def refuse(name: str) -> None:
            raise R1hpcError("no weights")

        engines = Engines()
        engines.may_start.set()
        recovery = engines.recovery(refuse)
        recovery.begin("engine0")
        await ended(recovery)
        assert engines.down == ["engine0: no weights"] * ATTEMPTS
        assert engines.given_up == ["engine0"]

    asyncio.run(work())


def test_a_stop_ends_what_is_under_way_before_it_returns() -> None:
    async def work() -> None:
        engines = Engines()
        recovery = engines.recovery()
        recovery.begin("engine0")
        await asyncio.sleep(0)
        await recovery.stop()
        assert (engines.cancelled, engines.starting, recovery.under_way) == (1, 0, [])
        assert engines.given_up == []  # it is started for the next rollout
        recovery.begin("engine0")
        await recovery.stop()  # before it has run at all
        assert (engines.starts, recovery.under_way) == (1, [])

    asyncio.run(work())
