"""One engine over HTTP: whole responses, aborts, deadlines, broken connections, orders."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from r1hpc.rollout.client import Deadlines, EngineClient, EngineGone, EngineTimeout
from r1hpc.rollout.protocol import (
    BOOT_VERSION,
    EngineBusy,
    EngineRefusal,
    EngineReplyError,
    Request,
    Response,
)
from r1hpc.rollout.sampling import SamplingParams
from r1hpc.types import VersionSpan
from tests.rollout.fake_engine import FakeEngine, Fault, expected_response, prompt_for

QUICK = Deadlines(connect_s=5, order_s=2, health_s=2, idle_s=5, queue_s=20, slowest_tokens_per_s=1000)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def ask(response_len: int, limit: int = 1000, salt: int = 0) -> Request:
    params = SamplingParams(temperature=1.0, top_p=1.0, top_k=-1, max_new_tokens=limit)
    return Request(prompt_for(response_len, salt=salt), params, f"r{salt}")


async def until_quiet(engine: FakeEngine) -> None:
    async with asyncio.timeout(5):
        while engine.num_running:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("incremental", [True, False])
@pytest.mark.parametrize(("response_len", "limit"), [(1, 1000), (300, 1000), (300, 129), (300, 1)])
def test_tokens_logprobs_and_version_come_as_the_engine_made_them(
    incremental: bool, response_len: int, limit: int
) -> None:
    async def test() -> None:
        async with (
            FakeEngine(weight_version="7", incremental=incremental) as engine,
            EngineClient(engine.url, concurrency=4) as client,
        ):
            request = ask(response_len, limit)
            got = await client.generate(request)
            tokens, logprobs, reason = expected_response(request.prompt.tolist(), limit)
            assert got.tokens.tolist() == tokens
            assert got.logprobs.tolist() == logprobs
            assert got.finish_reason == reason
            assert got.versions == (VersionSpan(7, 0, len(tokens)),)

    run(test())


def test_no_more_than_the_concurrency_are_in_flight() -> None:
    async def test() -> None:
        async with FakeEngine(latency_s=0.02) as engine, EngineClient(engine.url, concurrency=3) as client:
            await asyncio.gather(*(client.generate(ask(5, salt=salt)) for salt in range(12)))
            assert engine.most_running == 3
            assert len({body["rid"] for body in engine.requests}) == 12

    run(test())


def test_connections_are_used_again() -> None:
    async def test() -> None:
        async with FakeEngine() as engine, EngineClient(engine.url, concurrency=1) as client:
            for salt in range(5):
                await client.generate(ask(3, salt=salt))
            assert engine.num_connections == 1

    run(test())


def test_an_abort_brings_what_there_is() -> None:
    async def test() -> None:
        async with FakeEngine(tokens_per_s=2000) as engine, EngineClient(engine.url, concurrency=2) as client:
            request = ask(100_000, 200_000)
            running = asyncio.ensure_future(client.generate(request))
            await asyncio.sleep(0.5)
            assert await client.running() == 1
            await client.abort_all()
            got = await running
            assert got.finish_reason == "abort"
            assert 128 <= len(got.tokens) < 100_000
            whole, _, _ = expected_response(request.prompt.tolist(), 200_000)
            assert got.tokens.tolist() == whole[: len(got.tokens)]
            assert await client.running() == 0

    run(test())


def test_nothing_is_asked_when_nothing_is_left() -> None:
    async def test() -> None:
        async with FakeEngine() as engine, EngineClient(engine.url, concurrency=1) as client:
            first = await client.generate(ask(9, limit=4))
            request = Request(prompt_for(9), ask(9, limit=4).params, "again", first)
            got = await client.generate(request)
            assert (got.tokens.tolist(), got.finish_reason) == (first.tokens.tolist(), "length")
            assert len(engine.requests) == 1

    run(test())


FAULTS = [
    (Fault("error500"), EngineBusy, "status 500"),
    (Fault("error400"), EngineRefusal, "status 400"),
    (Fault("malformed", 50), EngineReplyError, "malformed reply to r0"),
    (Fault("drop", 50), EngineGone, "r0 after 50 tokens"),
    (Fault("die", 50), EngineGone, "r0 after 50 tokens"),
    (Fault("hang", 50), EngineTimeout, "nothing for 0.5 s"),
]


@pytest.mark.parametrize(("fault", "error", "says"), FAULTS, ids=[fault.kind for fault, _, _ in FAULTS])
def test_a_failure_is_named_and_what_came_before_it_is_kept(fault: Fault, error: type[Exception], says: str) -> None:
    async def test() -> None:
        async with FakeEngine(weight_version="7") as engine:
            deadlines = Deadlines(connect_s=5, order_s=2, idle_s=0.5)
            async with EngineClient(engine.url, concurrency=1, name="engine0", deadlines=deadlines) as client:
                engine.faults.append(fault)
                response = Response(ask(200), "engine0")
                with pytest.raises(error, match=says) as caught:
                    await client.read(response)
                assert str(caught.value).startswith("engine0: ")
                kept = response.generation("abort")
                assert kept.tokens.tolist() == expected_response(prompt_for(200).tolist(), 200)[0][: fault.after_tokens]
                if fault.after_tokens:
                    assert kept.versions == (VersionSpan(7, 0, fault.after_tokens),)
                await until_quiet(engine)

    run(test())


def test_a_response_that_takes_too_long_is_dropped_at_the_engine() -> None:
    async def test() -> None:
        async with FakeEngine(tokens_per_s=500) as engine:
            deadlines = Deadlines(queue_s=0.4, slowest_tokens_per_s=1e6, idle_s=30)
            async with EngineClient(engine.url, concurrency=1, deadlines=deadlines) as client:
                with pytest.raises(EngineTimeout, match="129 of 1000 tokens after 0 s"):
                    await client.generate(ask(100_000))
                await until_quiet(engine)

    run(test())


def test_the_deadline_is_the_queue_and_the_tokens_at_the_slowest_speed() -> None:
    assert Deadlines(queue_s=1800, slowest_tokens_per_s=4).response_s(32_768) == 1800 + 8192


def test_a_caller_that_goes_away_leaves_nothing_running() -> None:
    async def test() -> None:
        async with FakeEngine(latency_s=30) as engine, EngineClient(engine.url, concurrency=1) as client:
            task = asyncio.ensure_future(client.generate(ask(10)))
            while not engine.num_running:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until_quiet(engine)
            engine.latency_s = 0
            assert (await client.generate(ask(10))).finish_reason == "stop"

    run(test())


def test_nobody_listens() -> None:
    async def test() -> None:
        async with FakeEngine() as engine, EngineClient(engine.url, concurrency=1, deadlines=QUICK) as client:
            await engine.die()
            for order in (client.generate(ask(3)), client.health(), client.running(), client.abort_all()):
                with pytest.raises(EngineGone, match=r"127\.0\.0\.1:\d+: .*ConnectError"):
                    await order
            await engine.start()
            assert (await client.generate(ask(3))).finish_reason == "stop"

    run(test())


def test_a_closed_client_says_so() -> None:
    async def test() -> None:
        async with FakeEngine() as engine:
            client = EngineClient(engine.url, concurrency=1)
            await client.close()
            with pytest.raises(EngineGone, match="its client was closed"):
                await client.generate(ask(3))
            with pytest.raises(EngineGone, match="its client was closed"):
                await client.abort_all()

    run(test())


def test_health_version_and_flush() -> None:
    async def test() -> None:
        async with (
            FakeEngine(weight_version="12") as engine,
            EngineClient(engine.url, concurrency=1, deadlines=QUICK) as client,
        ):
            await client.health()
            assert await client.weight_version() == 12
            engine.weight_version = "default"
            assert await client.weight_version() == BOOT_VERSION
            engine.weight_version = "latest"
            with pytest.raises(EngineReplyError, match="'latest'"):
                await client.weight_version()
            await client.flush()
            assert engine.flushes == 1
            engine.healthy = False
            with pytest.raises(EngineBusy, match="GET /health_generate: status 503"):
                await client.health()

    run(test())


def test_the_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    async def test() -> None:
        async with FakeEngine() as engine, EngineClient(engine.url, concurrency=1) as client:
            await client.health()
            assert (await client.generate(ask(3))).finish_reason == "stop"

    run(test())


def test_many_streams_at_once() -> None:
    async def test() -> None:
        async with FakeEngine(latency_s=0.5) as engine, EngineClient(engine.url, concurrency=256) as client:
            got = await asyncio.gather(*(client.generate(ask(5, salt=salt)) for salt in range(256)))
            assert [len(one.tokens) for one in got] == [5] * 256
            # All but a few had come before the first was answered: none waited for a connection.
            assert engine.most_running > 128

    run(test())
