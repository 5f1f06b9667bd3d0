"""Stop requests meet work that is cancelled, work that may end, and work that has ended."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from typing import IO

import pytest

from r1hpc.cluster.stop import StopListener
from r1hpc.interrupt import Interrupt, StopRequested


class Agent:
    """The other end of the listener's pipe."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        self.stream: IO[str] = os.fdopen(reader, encoding="utf-8")
        self._writer = os.fdopen(writer, "w", encoding="utf-8")

    def ask(self, who: str) -> None:
        print(json.dumps({"stop": who}), file=self._writer, flush=True)

    def die(self) -> None:
        self._writer.close()


def with_agent(test: Callable[[Agent, Interrupt], Awaitable[None]]) -> None:
    async def run() -> None:
        agent = Agent()
        try:
            await asyncio.wait_for(test(agent, Interrupt(StopListener(agent.stream))), 20)
        finally:
            agent.die()

    asyncio.run(run())


def test_work_that_does_not_unwind_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r1hpc.interrupt.UNWIND_S", 0.05)
    left = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await left.wait()

    async def test(agent: Agent, interrupt: Interrupt) -> None:
        agent.ask("SIGTERM at node01")
        with pytest.raises(StopRequested):
            await interrupt.unless(work(), "while working")
        left.set()

    with_agent(test)


def test_work_that_nobody_stops_gives_its_result() -> None:
    async def test(agent: Agent, interrupt: Interrupt) -> None:
        assert await interrupt.unless(asyncio.sleep(0.01, "done"), "while sleeping") == "done"
        interrupt.check("between")
        assert interrupt.requested is None

    with_agent(test)


def test_a_request_cancels_the_work_and_waits_until_it_has_unwound() -> None:
    unwound: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.05)
            unwound.append("yes")

    async def test(agent: Agent, interrupt: Interrupt) -> None:
        asyncio.get_running_loop().call_later(0.05, agent.ask, "SIGTERM at node03")
        with pytest.raises(StopRequested, match="asked to stop by SIGTERM at node03 while generating"):
            await interrupt.unless(work(), "while generating")
        assert unwound == ["yes"]
        with pytest.raises(StopRequested, match="before the next"):
            interrupt.check("before the next")

    with_agent(test)


def test_work_that_ends_within_the_patience_counts() -> None:
    async def test(agent: Agent, interrupt: Interrupt) -> None:
        agent.ask("SIGUSR1 at node01")
        assert await interrupt.within(asyncio.sleep(0.2, "done"), "while training", lambda: 10.0) == "done"
        assert interrupt.requested == "SIGUSR1 at node01"

    with_agent(test)


def test_work_that_takes_longer_is_cancelled() -> None:
    async def test(agent: Agent, interrupt: Interrupt) -> None:
        agent.ask("SIGUSR1 at node01")
        with pytest.raises(StopRequested, match="while training"):
            await interrupt.within(asyncio.sleep(60), "while training", lambda: 0.1)

    with_agent(test)


def test_an_error_of_the_work_is_raised_as_it_is() -> None:
    async def fail() -> None:
        raise ValueError("wrong")

    async def test(agent: Agent, interrupt: Interrupt) -> None:
        with pytest.raises(ValueError, match="wrong"):
            await interrupt.unless(fail(), "while failing")

    with_agent(test)


def test_the_death_of_the_agent_is_a_request() -> None:
    async def test(agent: Agent, interrupt: Interrupt) -> None:
        agent.die()
        with pytest.raises(StopRequested, match="the agent's end"):
            await interrupt.unless(asyncio.sleep(60), "while generating")

    with_agent(test)


def test_a_request_that_came_before_anybody_listened_is_heard() -> None:
    async def test(agent: Agent, interrupt: Interrupt) -> None:
        agent.ask("SIGTERM at node03")
        while interrupt.requested is None:
            await asyncio.sleep(0.01)
        with pytest.raises(StopRequested):
            await interrupt.unless(asyncio.sleep(60), "late")

    with_agent(test)
