"""Whole rollouts over HTTP: sampler, dispatcher and clients with fake engines, and once with a real server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import numpy
import pytest
from numpy.typing import NDArray

from r1hpc.config import Config
from r1hpc.rollout.client import EngineClient
from r1hpc.rollout.dispatch import Dispatcher, DispatchLimits
from r1hpc.rollout.filters import GroupFilter
from r1hpc.rollout.group import SamplerError
from r1hpc.rollout.protocol import BOOT_VERSION
from r1hpc.rollout.sampler import Rollout, Sampler
from r1hpc.types import Prompt
from tests.rollout.conftest import ENGINE_KEY
from tests.rollout.fake_engine import FakeEngine, Fault, expected_response, prompt_for
from tests.rollout.scripted import Alternating, decode
from tests.rollout.scripted import rollout_config as make_config

QUICK = DispatchLimits(attempts=3, backoff_s=0.01, poll_s=0.02)


class Lengths:
    """Prompts with responses of 20, 40, ..., 20 * `spread` tokens, and again."""

    def __init__(self, spread: int = 5) -> None:
        self.spread = spread
        self.taken = 0

    def take(self, count: int) -> list[Prompt]:
        numbers = range(self.taken, self.taken + count)
        self.taken += count
        return [Prompt(n, 0, prompt_for(20 * (1 + n % self.spread), salt=n), str(n)) for n in numbers]

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.taken = state["taken"]


@asynccontextmanager
async def engines(count: int, **fields: Any) -> AsyncIterator[tuple[list[FakeEngine], Dispatcher]]:
    """Fake engines and the dispatcher that has them."""
    fakes = [FakeEngine(**fields) for _ in range(count)]
    dispatcher = Dispatcher(QUICK)
    for fake in fakes:
        await fake.start()
        dispatcher.add(EngineClient(fake.url, concurrency=24))
    try:
        yield fakes, dispatcher
    finally:
        await dispatcher.close()
        for fake in fakes:
            await fake.die()


def make_sampler(dispatcher: Dispatcher, **fields: Any) -> Sampler:
    config = make_config(**{"n_samples_per_prompt": 4, "rollout_max_response_len": 90} | fields)
    return Sampler(config, Lengths(), dispatcher, Alternating(), decode, GroupFilter.of(config))


def assert_as_foretold(rollout: Rollout, max_response_len: int = 90) -> None:
    """Every response is the one that the engine gives to its prompt, however many engines it took."""
    for group in rollout.groups:
        tokens, logprobs, reason = expected_response(group.prompt.tokens.tolist(), max_response_len)
        for sample in group.samples:
            assert sample.tokens.tolist() == [*group.prompt.tokens.tolist(), *tokens]
            assert sample.rollout_logprobs is not None
            assert sample.rollout_logprobs.tolist() == logprobs
            assert sample.finish_reason == reason


def test_rollouts_over_two_engines_leave_none_running() -> None:
    async def run() -> None:
        async with engines(2, tokens_per_s=400.0) as (fakes, dispatcher):
            sampler = make_sampler(dispatcher)
            for rollout_id in range(2):
                rollout = await sampler.rollout(rollout_id, 0)
                assert_as_foretold(rollout)
                assert len(rollout.groups) == 4
                assert [fake.num_running for fake in fakes] == [0, 0]
                counts = rollout.report.groups
                assert (counts.waves, counts.aborted + counts.surplus, counts.recycled) == (1, 4, 4)

    asyncio.run(asyncio.wait_for(run(), 60))


def test_an_engine_that_dies_in_the_middle_costs_no_group_and_doubles_none() -> None:
    async def run() -> None:
        async with engines(2, tokens_per_s=200.0) as (fakes, dispatcher):
            sampler = make_sampler(dispatcher, rollout_batch_size=8)
            rolling = asyncio.create_task(sampler.rollout(0, 0))
            while not (fakes[0].num_running and fakes[1].num_running):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            await fakes[0].die()
            rollout = await rolling
            assert_as_foretold(rollout)
            assert [group.prompt.index for group in rollout.groups] == list(range(8))
            assert Counter(sample.group_index for sample in rollout.samples) == dict.fromkeys(range(8), 4)
            assert fakes[1].num_running == 0

    asyncio.run(asyncio.wait_for(run(), 60))


def test_replies_that_are_malformed_end_the_rollout_with_the_reason() -> None:
    async def run() -> None:
        async with engines(1) as (fakes, dispatcher):
            fakes[0].faults.extend(Fault("malformed") for _ in range(1000))
            sampler = make_sampler(dispatcher)
            with pytest.raises(SamplerError, match=r"(?s)\d groups failed.*malformed reply to r0-g\d-s\d"):
                await sampler.rollout(0, 0)
            assert fakes[0].num_running == 0
            fakes[0].faults.clear()
            assert_as_foretold(await sampler.rollout(0, 0))

    asyncio.run(asyncio.wait_for(run(), 60))


def test_partial_responses_go_on_where_they_were() -> None:
    async def run() -> None:
        async with engines(1, tokens_per_s=300.0) as (fakes, dispatcher):
            sampler = make_sampler(dispatcher, recycle="tokens", rollout_batch_size=2, over_sampling_batch_size=5)
            stale = 0
            for rollout_id in range(4):
                fakes[0].weight_version = str(rollout_id)
                dispatcher.publish(rollout_id)
                rollout = await sampler.rollout(rollout_id, rollout_id)
                assert_as_foretold(rollout)
                stale += rollout.report.kept.stale_tokens
            assert stale > 0

    asyncio.run(asyncio.wait_for(run(), 60))


def test_a_rollout_of_a_real_server_is_aborted_to_the_last_request(engine_url: str, rollout_config: Config) -> None:
    """128/256/8 scaled down: 3 groups of 4 are kept of 8 that are submitted, the rest is aborted."""

    class Ascending(Lengths):
        def take(self, count: int) -> list[Prompt]:
            first = self.taken
            super().take(count)
            return [
                Prompt(first + n, 0, numpy.arange(5, 12 + n, dtype=numpy.int32), str(first + n)) for n in range(count)
            ]

    async def run() -> None:
        dispatcher = Dispatcher(QUICK)
        dispatcher.add(EngineClient(engine_url, concurrency=8, secret=ENGINE_KEY))
        given = rollout_config.rollout.model_dump() | {"rollout_batch_size": 3, "over_sampling_batch_size": 8}
        config = type(rollout_config.rollout)(**given)
        sampler = Sampler(config, Ascending(), dispatcher, Alternating(), decode, GroupFilter.of(config))
        try:
            rollout = await sampler.rollout(0, BOOT_VERSION)
            client = EngineClient(engine_url, concurrency=1, secret=ENGINE_KEY)
            assert await client.running() == 0
            await client.close()
        finally:
            await dispatcher.close()
        assert len(rollout.groups) == 3
        assert all(len(group.samples) == 4 for group in rollout.groups)
        for sample in rollout.samples:
            logprobs: NDArray[numpy.float32] | None = sample.rollout_logprobs
            assert logprobs is not None
            assert logprobs.shape == (sample.response_len,)
            assert (logprobs <= 1e-6).all()
            assert sample.response_len == 64 or sample.finish_reason == "stop"
        assert rollout.report.not_stopped is None

    asyncio.run(asyncio.wait_for(run(), 200))
