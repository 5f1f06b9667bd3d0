"""The client and the dispatcher against a real SGLang server on CPU."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import numpy
import pytest

from r1hpc.rollout.client import EngineClient
from r1hpc.rollout.dispatch import Dispatcher
from r1hpc.rollout.protocol import EngineRefusal, Request
from r1hpc.rollout.sampling import SamplingParams
from r1hpc.types import Generation
from tests.rollout.conftest import ENGINE_KEY


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 200))


def ask(max_new_tokens: int, temperature: float = 0.0, begun: Generation | None = None, name: str = "r") -> Request:
    prompt = numpy.arange(10, 22, dtype=numpy.int32)
    return Request(prompt, SamplingParams(temperature, 1.0, -1, max_new_tokens), name, begun)


def check_logprobs(got: Generation) -> None:
    assert len(got.tokens) == len(got.logprobs)
    assert (got.logprobs <= 1e-5).all()
    assert numpy.isfinite(got.logprobs).all()


def test_a_response_that_goes_on_from_its_first_tokens_is_the_same_response(engine_url: str) -> None:
    async def test() -> None:
        async with EngineClient(engine_url, concurrency=4, secret=ENGINE_KEY) as client:
            version = await client.weight_version()
            whole = await client.generate(ask(200))
            check_logprobs(whole)
            assert [(span.version, span.begin, span.end) for span in whole.versions] == [
                (version, 0, len(whole.tokens))
            ]
            half = await client.generate(ask(min(131, len(whole.tokens) - 1)))
            assert half.finish_reason == "length"
            again = await client.generate(ask(200, begun=half))
            assert again.tokens.tolist() == whole.tokens.tolist()
            assert again.finish_reason == whole.finish_reason
            numpy.testing.assert_allclose(again.logprobs, whole.logprobs, atol=1e-4)

    run(test())


def test_stop_keeps_what_there_is_and_leaves_no_running_request(engine_url: str) -> None:
    async def test() -> None:
        dispatcher = Dispatcher()
        client = EngineClient(engine_url, concurrency=6, secret=ENGINE_KEY)
        dispatcher.add(client)
        dispatcher.start()
        try:
            tasks = [
                asyncio.ensure_future(dispatcher.generate(ask(400, 1.0, name=f"r{place}"), place // 4))
                for place in range(8)
            ]
            async with asyncio.timeout(60):
                while await client.running() < 6:
                    await asyncio.sleep(0.1)
            await dispatcher.stop(30)
            assert await client.running() == 0
            got = await asyncio.gather(*tasks)
            for one in got:
                check_logprobs(one)
            assert sum(one.finish_reason == "abort" for one in got) >= 2
            assert sum(len(one.tokens) == 0 for one in got) >= 2
            dispatcher.start()
            first = got[0]
            rest = await dispatcher.generate(ask(len(first.tokens) + 5, 1.0, begun=first), 0)
            assert rest.tokens[: len(first.tokens)].tolist() == first.tokens.tolist()
            assert rest.logprobs[: len(first.tokens)].tolist() == first.logprobs.tolist()
        finally:
            await dispatcher.close()

    run(test())


def test_a_prompt_beyond_the_context_is_refused_and_said_why(engine_url: str) -> None:
    async def test() -> None:
        async with EngineClient(engine_url, concurrency=1, secret=ENGINE_KEY) as client:
            wrong = Request(numpy.full(300_000, 20, numpy.int32), ask(4).params, "wrong")
            with pytest.raises(EngineRefusal, match=r"wrong: status 400: .*context length"):
                await client.generate(wrong)
            assert await client.running() == 0

    run(test())


def test_health_and_flush(engine_url: str) -> None:
    async def test() -> None:
        async with EngineClient(engine_url, concurrency=1, secret=ENGINE_KEY) as client:
            await client.health()
            await client.flush()

    run(test())
