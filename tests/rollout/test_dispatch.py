"""Requests over several engines: who gets what, and that every one is answered once whatever happens to the engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r1hpc.rollout.client import Deadlines, EngineClient
from r1hpc.rollout.dispatch import Dispatcher, DispatchError, DispatchLimits, EngineStopError, NoEngineError
from r1hpc.rollout.protocol import EngineRefusal, Request
from r1hpc.rollout.sampling import SamplingParams
from r1hpc.types import Generation, VersionSpan
from tests.rollout.fake_engine import FakeEngine, Fault, FaultKind, expected_response, prompt_for

DEADLINES = Deadlines(connect_s=2, order_s=1, health_s=0.5, idle_s=10, queue_s=20, slowest_tokens_per_s=1000)
LIMITS = DispatchLimits(backoff_s=0.01, no_engine_s=3, poll_s=0.02, health_interval_s=0.2, health_misses=2)
LIMIT = 2000
"""max_new_tokens of the requests here."""


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def ask(response_len: int, name: str = "r", salt: int = 0) -> Request:
    params = SamplingParams(temperature=1.0, top_p=1.0, top_k=-1, max_new_tokens=LIMIT)
    return Request(prompt_for(response_len, salt=salt), params, name)


def check_whole(request: Request, got: Generation) -> None:
    """The response is the uninterrupted one, token for token."""
    tokens, logprobs, reason = expected_response(request.prompt.tolist(), LIMIT)
    assert got.finish_reason == reason
    assert got.tokens.tolist() == tokens
    assert got.logprobs.tolist() == logprobs
    check_spans(got)


def check_prefix(request: Request, got: Generation) -> None:
    """An aborted response is the beginning of the uninterrupted one."""
    tokens, logprobs, _ = expected_response(request.prompt.tolist(), LIMIT)
    assert got.finish_reason == "abort"
    assert got.tokens.tolist() == tokens[: len(got.tokens)]
    assert got.logprobs.tolist() == logprobs[: len(got.tokens)]
    check_spans(got)


def check_spans(got: Generation) -> None:
    ends = [0, *(span.end for span in got.versions)]
    assert [span.begin for span in got.versions] == ends[:-1]
    assert ends[-1] == len(got.tokens)


@dataclass
class House:
    dispatcher: Dispatcher
    fakes: list[FakeEngine]
    down: list[tuple[str, str]]
    deadlines: Deadlines

    def names_of(self, prefix: str) -> list[int]:
        """How many requests whose id begins so each engine was asked for."""
        return [sum(body["rid"].split("-", 1)[1].startswith(prefix) for body in fake.requests) for fake in self.fakes]

    def client(self, place: int, concurrency: int = 8) -> EngineClient:
        return EngineClient(
            self.fakes[place].url, concurrency=concurrency, name=f"engine{place}", deadlines=self.deadlines
        )


@asynccontextmanager
async def house(
    count: int,
    concurrency: int = 8,
    limits: DispatchLimits = LIMITS,
    deadlines: Deadlines = DEADLINES,
    start: bool = True,
    **fake: Any,
) -> AsyncIterator[House]:
    down: list[tuple[str, str]] = []
    dispatcher = Dispatcher(limits, on_down=lambda name, reason: down.append((name, reason)))
    made = House(dispatcher, [FakeEngine(**fake) for _ in range(count)], down, deadlines)
    try:
        for place, engine in enumerate(made.fakes):
            await engine.start()
            dispatcher.add(made.client(place, concurrency), 0)
        if start:
            dispatcher.start()
        yield made
    finally:
        await dispatcher.close()
        for engine in made.fakes:
            await engine.die()


def states(dispatcher: Dispatcher) -> list[str]:
    return [status.state for status in dispatcher.engines]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


async def until_down(h: House) -> None:
    """A broken connection makes an engine suspect; a probe then finds it dead."""
    await until(lambda: bool(h.down))


async def until_under_way(h: House, running: int) -> None:
    """So many requests have come to engines, and each has sent more than the first token."""
    await until(lambda: sum(fake.num_running for fake in h.fakes) == running)
    sent = sum(fake.tokens_sent for fake in h.fakes)
    await until(lambda: sum(fake.tokens_sent for fake in h.fakes) >= sent + 128 * running)


def test_the_samples_of_a_group_go_to_one_engine_and_groups_to_the_least_loaded() -> None:
    async def test() -> None:
        async with house(2, concurrency=16, latency_s=0.2) as h:
            asked = [(group, ask(4, f"g{group}s{place}")) for group in range(4) for place in range(8)]
            got = await asyncio.gather(*(h.dispatcher.generate(request, group) for group, request in asked))
            for (_, request), one in zip(asked, got, strict=True):
                check_whole(request, one)
            for group in range(4):
                assert sorted(h.names_of(f"g{group}s")) == [0, 8]
            assert h.names_of("g") == [16, 16]

    run(test())


def test_a_free_engine_draws_the_groups_that_wait_while_a_slow_one_is_busy() -> None:
    async def test() -> None:
        async with house(2, concurrency=2) as h:
            h.fakes[0].latency_s = 4
            asked = [(group, ask(4, f"g{group}s{place}")) for group in range(10) for place in range(2)]
            await asyncio.gather(*(h.dispatcher.generate(request, group) for group, request in asked))
            assert h.names_of("g") == [2, 18]
            assert max(fake.most_running for fake in h.fakes) == 2

    run(test())


def test_unfinished_requests_of_a_killed_engine_go_on_at_the_other_with_what_they_have() -> None:
    async def test() -> None:
        async with house(2, concurrency=16, tokens_per_s=600) as h:
            asked = [(group, ask(900, f"g{group}s{place}")) for group in range(4) for place in range(4)]
            tasks = [asyncio.ensure_future(h.dispatcher.generate(request, group)) for group, request in asked]
            await until_under_way(h, 16)
            assert h.fakes[0].num_running == h.fakes[1].num_running == 8
            await h.fakes[0].die()
            got = await asyncio.gather(*tasks)
            for (_, request), one in zip(asked, got, strict=True):
                check_whole(request, one)
            await until_down(h)
            assert states(h.dispatcher) == ["down", "up"]
            assert [name for name, _ in h.down] == ["engine0"]
            # Each of the eight was asked for once more, and not from its beginning.
            assert h.names_of("g") == [8, 16]
            assert sum(len(body["input_ids"]) > 4 for body in h.fakes[1].requests) == 8
            assert h.fakes[1].num_running == 0

    run(test())


def test_an_engine_comes_back_only_with_the_current_weights() -> None:
    async def test() -> None:
        async with house(2, weight_version="3") as h:
            h.dispatcher.publish(3)
            await h.fakes[0].die()
            check_whole(request := ask(5), await h.dispatcher.generate(request, 1))
            await until_down(h)
            assert states(h.dispatcher) == ["down", "up"]
            h.fakes[0].weight_version = "default"
            await h.fakes[0].start()
            h.dispatcher.add(h.client(0), -1)
            seen = len(h.fakes[0].requests)
            await asyncio.gather(*(h.dispatcher.generate(ask(5), group) for group in range(20)))
            assert len(h.fakes[0].requests) == seen
            h.fakes[0].weight_version = "3"
            h.dispatcher.publish(3, ["engine0"])
            await asyncio.gather(*(h.dispatcher.generate(ask(5), group) for group in range(20)))
            assert len(h.fakes[0].requests) > seen
            assert states(h.dispatcher) == ["up", "up"]

    run(test())


def test_requests_wait_for_an_engine_that_comes_back() -> None:
    async def test() -> None:
        async with house(1, tokens_per_s=1000) as h:
            request = ask(600)
            task = asyncio.ensure_future(h.dispatcher.generate(request, 1))
            await until_under_way(h, 1)
            await h.fakes[0].die()
            await until_down(h)
            assert h.dispatcher.num_waiting == 1
            await h.fakes[0].start()
            h.dispatcher.add(h.client(0), 0)
            check_whole(request, await task)

    run(test())


def test_tokens_of_other_weights_are_dropped_and_their_engine_gets_nothing_more() -> None:
    async def test() -> None:
        async with house(2, weight_version="3") as h:
            h.dispatcher.publish(3)
            h.fakes[0].faults.append(Fault("other_version"))
            request = ask(300)
            got = await h.dispatcher.generate(request, 1)
            check_whole(request, got)
            assert got.versions == (VersionSpan(3, 0, 300),)
            assert [len(fake.requests) for fake in h.fakes] == [1, 1]
            assert len(h.fakes[1].requests[0]["input_ids"]) == 4
            assert [status.weight_version for status in h.dispatcher.engines] == [999, 3]
            await asyncio.gather(*(h.dispatcher.generate(ask(5), group) for group in range(20)))
            assert len(h.fakes[0].requests) == 1

    run(test())


@pytest.mark.parametrize("kind", ["malformed", "drop", "error500", "hang", "abort"])
def test_a_request_that_fails_once_is_asked_for_again_from_where_it_was(kind: FaultKind) -> None:
    async def test() -> None:
        async with house(1, deadlines=replace(DEADLINES, idle_s=1)) as h:
            h.fakes[0].faults.append(Fault(kind, 0 if kind == "error500" else 150))
            request = ask(400)
            check_whole(request, await h.dispatcher.generate(request, 1))
            again = h.fakes[0].requests[1]
            begun = 0 if kind == "error500" else 150
            assert len(again["input_ids"]) == 4 + begun
            assert again["sampling_params"]["max_new_tokens"] == LIMIT - begun
            assert states(h.dispatcher) == ["up"]

    run(test())


def test_a_request_that_always_fails_is_given_up_with_every_reason() -> None:
    async def test() -> None:
        async with house(2) as h:
            for fake in h.fakes:
                fake.faults.extend([Fault("malformed")] * 10)
            with pytest.raises(DispatchError, match="r: given up after 6 attempts and 0 tokens") as caught:
                await h.dispatcher.generate(ask(5), 1)
            assert str(caught.value).count("malformed reply to r") == 6
            assert sum(len(fake.requests) for fake in h.fakes) == 6

    run(test())


def test_a_wrong_request_is_not_asked_for_again() -> None:
    async def test() -> None:
        async with house(2) as h:
            h.fakes[0].faults.append(Fault("error400"))
            with pytest.raises(EngineRefusal, match="engine0: r: status 400"):
                await h.dispatcher.generate(ask(5), 1)
            assert sum(len(fake.requests) for fake in h.fakes) == 1

    run(test())


def test_stop_answers_everything_with_what_there_is_and_leaves_nothing_running() -> None:
    async def test() -> None:
        async with house(2, concurrency=4, tokens_per_s=400) as h:
            asked = [(place // 2, ask(1500, f"r{place}", place)) for place in range(20)]
            tasks = [asyncio.ensure_future(h.dispatcher.generate(request, group)) for group, request in asked]
            await until_under_way(h, 8)
            begin = time.monotonic()
            await h.dispatcher.stop(5.0)
            assert time.monotonic() - begin < 2.0
            assert [fake.num_running for fake in h.fakes] == [0, 0]
            assert all(task.done() for task in tasks)
            for (_, request), task in zip(asked, tasks, strict=True):
                check_prefix(request, task.result())
            lengths = [len(task.result().tokens) for task in tasks]
            assert sum(length > 100 for length in lengths) == 8
            assert sum(length == 0 for length in lengths) == 12

    run(test())


def test_after_a_stop_requests_come_back_at_once_and_go_on_after_the_next_start() -> None:
    async def test() -> None:
        async with house(1, tokens_per_s=800) as h:
            request = ask(500)
            task = asyncio.ensure_future(h.dispatcher.generate(request, 1))
            await until_under_way(h, 1)
            await h.dispatcher.stop(5)
            part = await task
            assert 0 < len(part.tokens) < 500
            rest = Request(request.prompt, request.params, "again", part)
            back = await h.dispatcher.generate(rest, 1)
            assert (back.finish_reason, back.tokens.tolist()) == ("abort", part.tokens.tolist())
            assert len(h.fakes[0].requests) == 1
            h.dispatcher.start()
            check_whole(request, await h.dispatcher.generate(rest, 1))

    run(test())


def test_before_the_first_start_nothing_is_accepted() -> None:
    async def test() -> None:
        async with house(1, start=False) as h:
            with pytest.raises(DispatchError, match="call start"):
                await h.dispatcher.generate(ask(5), 1)

    run(test())


def test_an_engine_that_does_not_stop_is_named_and_the_answers_come_all_the_same() -> None:
    async def test() -> None:
        async with house(2, tokens_per_s=200) as h:
            h.fakes[1].abort_is_deaf = True
            asked = [(place, ask(1900, f"r{place}", place)) for place in range(4)]
            tasks = [asyncio.ensure_future(h.dispatcher.generate(request, group)) for group, request in asked]
            await asyncio.sleep(0.3)
            with pytest.raises(
                EngineStopError, match="not stopped within 1 s:\n  engine1: 2 requests still run"
            ) as caught:
                await h.dispatcher.stop(1.0)
            assert "engine0" not in str(caught.value)
            for (_, request), task in zip(asked, tasks, strict=True):
                check_prefix(request, await task)

    run(test())


def test_an_engine_that_dies_while_it_is_stopped_does_not_hold_the_stop() -> None:
    async def test() -> None:
        async with house(2, tokens_per_s=300) as h:
            h.fakes[0].abort_is_deaf = True
            asked = [(place, ask(1900, f"r{place}", place)) for place in range(4)]
            tasks = [asyncio.ensure_future(h.dispatcher.generate(request, group)) for group, request in asked]
            await until_under_way(h, 4)
            stopping = asyncio.ensure_future(h.dispatcher.stop(20))
            await asyncio.sleep(0.2)
            await h.fakes[0].die()
            await asyncio.wait_for(stopping, 5)
            for (_, request), task in zip(asked, tasks, strict=True):
                check_prefix(request, task.result())

    run(test())


def test_without_any_engine_the_wait_ends_and_names_each() -> None:
    async def test() -> None:
        limits = DispatchLimits(backoff_s=0.01, no_engine_s=0.5)
        async with house(2, limits=limits) as h:
            h.dispatcher.publish(4, ["engine1"])
            h.dispatcher.remove("engine1", "its process ended with code -9")
            with pytest.raises(NoEngineError) as caught:
                await h.dispatcher.generate(ask(5), 1)
            assert str(caught.value) == (
                "no engine with weights 4 to serve for 0.5 s: 2 known\n"
                "  engine0: up, weights 0\n"
                "  engine1: down, weights 4: its process ended with code -9"
            )
            assert h.down == [], "its owner said so: no need to tell it"

    run(test())


def test_an_engine_that_is_removed_hands_its_requests_over() -> None:
    async def test() -> None:
        async with house(2, tokens_per_s=500) as h:
            requests = [ask(500, f"r{place}", place) for place in range(4)]
            tasks = [asyncio.ensure_future(h.dispatcher.generate(r, place)) for place, r in enumerate(requests)]
            await until_under_way(h, 4)
            h.dispatcher.remove("engine0")
            for request, got in zip(requests, await asyncio.gather(*tasks), strict=True):
                check_whole(request, got)
            assert [len(fake.requests) for fake in h.fakes] == [2, 4]
            # It lives still, and was told to drop them.
            assert h.fakes[0].num_running == 0

    run(test())


def test_an_engine_that_hangs_is_taken_out_by_its_health() -> None:
    async def test() -> None:
        async with house(2, tokens_per_s=500) as h:
            h.fakes[0].faults.extend([Fault("hang", 200)] * 2)
            requests = [ask(700, f"r{place}", place) for place in range(4)]
            tasks = [asyncio.ensure_future(h.dispatcher.generate(r, place)) for place, r in enumerate(requests)]
            await until_under_way(h, 4)
            h.fakes[0].healthy = False
            for request, got in zip(requests, await asyncio.gather(*tasks), strict=True):
                check_whole(request, got)
            ((name, reason),) = h.down
            assert name == "engine0"
            assert reason.startswith("unhealthy 2 times in a row: engine0: GET /health_generate: status 503")

    run(test())


def test_callers_that_go_away_free_their_places() -> None:
    async def test() -> None:
        async with house(1, concurrency=2, tokens_per_s=100) as h:
            tasks = [asyncio.ensure_future(h.dispatcher.generate(ask(1900), place)) for place in range(6)]
            await until(lambda: h.fakes[0].num_running == 2)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert all(task.cancelled() for task in tasks)
            h.fakes[0].tokens_per_s = 0
            got = await asyncio.gather(*(h.dispatcher.generate(ask(9), place) for place in range(4)))
            assert [one.finish_reason for one in got] == ["stop"] * 4
            assert h.dispatcher.num_waiting == 0
            async with asyncio.timeout(3):
                while h.fakes[0].num_running:
                    await asyncio.sleep(0.01)

    run(test())


KINDS: list[FaultKind] = ["malformed", "drop", "error500", "abort", "die", "other_version"]
EVENTS = st.one_of(
    st.tuples(st.just("fault"), st.integers(0, 1), st.sampled_from(KINDS), st.integers(0, 250)),
    st.tuples(st.just("kill"), st.integers(0, 1), st.none(), st.none()),
    st.tuples(st.just("remove"), st.integers(0, 1), st.none(), st.none()),
    st.tuples(st.just("cancel"), st.integers(0, 11), st.none(), st.none()),
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    lengths=st.lists(st.integers(1, 260), min_size=12, max_size=12),
    schedule=st.lists(st.tuples(st.integers(0, 12), EVENTS), max_size=8),
    stop_after=st.one_of(st.none(), st.integers(1, 25)),
)
def test_whatever_happens_each_request_is_answered_once_and_rightly(
    lengths: list[int], schedule: list[tuple[int, Any]], stop_after: int | None
) -> None:
    """Ticks of 10 ms; dead and removed engines are started again two ticks later. Nothing runs at the end."""

    async def test() -> None:
        limits = DispatchLimits(
            attempts=20, backoff_s=0.001, no_engine_s=5, poll_s=0.01, health_interval_s=0.05, health_misses=3
        )
        async with house(2, concurrency=4, limits=limits, tokens_per_s=2500) as h:
            h.dispatcher.publish(0)
            requests = [ask(length, f"r{place}", place) for place, length in enumerate(lengths)]
            tasks = [
                asyncio.ensure_future(h.dispatcher.generate(request, place // 3))
                for place, request in enumerate(requests)
            ]
            cancelled: set[int] = set()
            tick = 0
            while not all(task.done() for task in tasks) and tick < 1000:
                for _, event in (entry for entry in schedule if entry[0] == tick):
                    match event:
                        case ("fault", engine, kind, after):
                            h.fakes[engine].faults.append(Fault(kind, after))
                        case ("kill", engine, _, _):
                            await h.fakes[engine].die()
                        case ("remove", engine, _, _):
                            h.dispatcher.remove(f"engine{engine}")
                        case ("cancel", place, _, _):
                            if tasks[place].cancel():
                                cancelled.add(place)
                if tick == stop_after:
                    await h.dispatcher.stop(5)
                    break
                await asyncio.sleep(0.01)
                tick += 1
                if tick % 2 == 0:
                    await bring_back(h)
            got = await asyncio.gather(*tasks, return_exceptions=True)
            check_answers(requests, got, cancelled, stopped=tick == stop_after)
            assert h.dispatcher.num_waiting == 0
            assert [status.in_flight for status in h.dispatcher.engines] == [0, 0]
            async with asyncio.timeout(3):
                while any(fake.num_running for fake in h.fakes):
                    await asyncio.sleep(0.01)

    run(test())


async def bring_back(h: House) -> None:
    for place, status in enumerate(h.dispatcher.engines):
        if not h.fakes[place].alive:
            await h.fakes[place].start()
        if status.state == "down":
            h.dispatcher.add(h.client(place, 4), 0)
        elif status.weight_version != 0:
            h.dispatcher.publish(0, [status.name])


def check_answers(
    requests: list[Request], got: list[Generation | BaseException], cancelled: set[int], stopped: bool
) -> None:
    for place, (request, one) in enumerate(zip(requests, got, strict=True)):
        if isinstance(one, asyncio.CancelledError):
            assert place in cancelled
        elif isinstance(one, BaseException):
            raise one
        elif one.finish_reason == "abort":
            assert stopped
            check_prefix(request, one)
        else:
            check_whole(request, one)
            assert one.versions == (VersionSpan(0, 0, len(one.tokens)),)


def test_an_engine_that_fails_at_everything_takes_no_group_down_with_it() -> None:
    async def test() -> None:
        async with house(2) as home:
            # It answers at once, so it is always the least loaded.
            home.fakes[0].faults.extend([Fault("error500")] * 500)
            requests = [ask(40, f"a{place}", salt=place // 4) for place in range(32)]
            got = await asyncio.gather(*(home.dispatcher.generate(r, i // 4) for i, r in enumerate(requests)))
            for request, generation in zip(requests, got, strict=True):
                check_whole(request, generation)
            broken, whole = home.names_of("a")
            assert whole == 32
            assert broken <= 32

    run(test())


def test_an_owner_whose_callback_fails_keeps_the_watch_over_the_other_engines(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        def fail(name: str, reason: str) -> None:
            raise ValueError("no place to restart it")

        dispatcher = Dispatcher(LIMITS, on_down=fail)
        async with FakeEngine() as first, FakeEngine() as second:
            for name, fake in (("engine0", first), ("engine1", second)):
                dispatcher.add(EngineClient(fake.url, concurrency=2, name=name, deadlines=DEADLINES))
            dispatcher.start()
            first.healthy = False
            await until(lambda: states(dispatcher) == ["down", "up"])
            second.healthy = False
            await until(lambda: states(dispatcher) == ["down", "down"])
            await dispatcher.close()
        assert "on_down failed for engine engine0" in caplog.text

    run(test())


def test_an_engine_that_answers_a_probe_with_a_page_is_taken_out() -> None:
    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /model_info"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\nConnection: close\r\n\r\n<html>hi</html>")
        writer.close()

    async def test() -> None:
        server = await asyncio.start_server(page, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, FakeEngine() as good:
            down: list[str] = []
            dispatcher = Dispatcher(LIMITS, on_down=lambda name, reason: down.append(reason))
            dispatcher.add(EngineClient(url, concurrency=2, name="page", deadlines=DEADLINES))
            dispatcher.add(EngineClient(good.url, concurrency=2, name="good", deadlines=DEADLINES))
            dispatcher.start()
            requests = [ask(40, salt=place) for place in range(4)]
            got = await asyncio.gather(*(dispatcher.generate(each, i) for i, each in enumerate(requests)))
            for request, generation in zip(requests, got, strict=True):
                check_whole(request, generation)
            await until(lambda: states(dispatcher) == ["down", "up"])
            assert "reply of /model_info is not JSON: '<html>hi</html>'" in down[0]
            await dispatcher.close()

    run(test())


def test_engines_that_are_in_use_are_not_started_by_somebody_else() -> None:
    async def test() -> None:
        async with house(1, tokens_per_s=1000) as home:
            running = asyncio.create_task(home.dispatcher.generate(ask(1000), 0))
            await until(lambda: home.fakes[0].num_running == 1)
            with pytest.raises(DispatchError, match="in use, with 1 requests: a rollout and an evaluation take turns"):
                home.dispatcher.start()
            await home.dispatcher.stop(5)
            home.dispatcher.start()
            assert (await running).finish_reason == "abort"

    run(test())
