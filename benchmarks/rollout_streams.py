"""Sampler + dispatcher + client against a bare loop of the same HTTP calls, 2,048 responses at once.

    python -m benchmarks.rollout_streams [--repetitions 3]

The engine is the tests' fake in a process of its own. Every response has 256 tokens that come in three chunks over
about two seconds, so that all of them stream at once. The bare loop sends the same bodies over the same kind of
connections and reads the bytes without looking at them. Its requests are timed from the call to the last byte, the
sampler's from generate() until the response is parsed, decoded and handed to the rewards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy

from r1hpc.config.training import RolloutConfig
from r1hpc.rewards.request import RewardRequest, Score
from r1hpc.rollout.client import EngineClient
from r1hpc.rollout.dispatch import Dispatcher
from r1hpc.rollout.protocol import Request, request_body
from r1hpc.rollout.sampler import Sampler
from r1hpc.rollout.sampling import SamplingParams
from r1hpc.rollout.transport import PooledTransport
from r1hpc.types import Generation, Prompt
from tests.rollout.fake_engine import prompt_for

HOME = Path(__file__).resolve().parents[1]
GROUPS = 256
SAMPLES = 8
STREAMS = GROUPS * SAMPLES
RESPONSE_LEN = 256
PROMPT_LEN = 128
TOKENS_PER_S = 128.0


@dataclass(frozen=True)
class Burst:
    """2,048 requests sent at once."""

    seconds: float
    cpu_s: float
    """Of this process: unlike the others it hardly depends on what else the machine does."""
    latencies_s: list[float]

    @property
    def p50_s(self) -> float:
        """Median latency of a request."""
        return statistics.median(self.latencies_s)


def main() -> None:
    """Measure both in turn, so that what else the machine does falls on both alike."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    repetitions = parser.parse_args().repetitions
    with fake_engine() as url:
        asyncio.run(bare_loop(url))  # cold
        pairs = [(asyncio.run(bare_loop(url)), asyncio.run(sampled(url))) for _ in range(repetitions)]
    figures = {
        "requests_per_s": STREAMS / statistics.median(ours.seconds for _, ours in pairs),
        "bare_loop_requests_per_s": STREAMS / statistics.median(bare.seconds for bare, _ in pairs),
        "added_latency_ms_p50": 1e3 * statistics.median(ours.p50_s - bare.p50_s for bare, ours in pairs),
        "bare_loop_latency_ms_p50": 1e3 * statistics.median(bare.p50_s for bare, _ in pairs),
        "request_cpu_ms": 1e3 * statistics.median(ours.cpu_s for _, ours in pairs) / STREAMS,
        "bare_loop_request_cpu_ms": 1e3 * statistics.median(bare.cpu_s for bare, _ in pairs) / STREAMS,
    }
    for name, value in figures.items():
        print(f"{name:<26} {value:.1f}")
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


@contextmanager
def fake_engine() -> Iterator[str]:
    """The URL of a fake engine that lives as long as the block."""
    command = [sys.executable, "-m", "tests.rollout.fake_engine", "--tokens-per-s", str(TOKENS_PER_S)]
    process = subprocess.Popen(command, cwd=HOME, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(30)


def prompt(number: int) -> Prompt:
    """A prompt that is answered with RESPONSE_LEN tokens."""
    return Prompt(number, 0, prompt_for(RESPONSE_LEN, PROMPT_LEN, salt=number), str(number))


async def bare_loop(url: str) -> Burst:
    """The same calls by httpx alone."""
    params = SamplingParams(0.8, 1.0, -1, RESPONSE_LEN)
    latencies: list[float] = []
    timeout = httpx.Timeout(600.0, pool=None)
    async with httpx.AsyncClient(base_url=url, transport=PooledTransport(STREAMS), timeout=timeout) as client:

        async def call(number: int) -> None:
            began = time.perf_counter()
            body = request_body(Request(prompt(number // SAMPLES).tokens, params, f"b{number}"), f"bare-{number}")
            async with client.stream("POST", "/generate", json=body) as reply:
                size = len(b"".join([chunk async for chunk in reply.aiter_raw()]))
            assert size > 5_000, size
            latencies.append(time.perf_counter() - began)

        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*map(call, range(STREAMS)))
        return Burst(time.perf_counter() - began, time.process_time() - cpu, latencies)


class _Prompts:
    def take(self, count: int) -> list[Prompt]:
        return [prompt(number) for number in range(count)]

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError("a benchmark has nothing to resume")


class _Clock:
    """Stands around the dispatcher and as the rewards: notes when each response was asked for and when it is there."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._began: dict[str | None, list[float]] = {}
        self.latencies: list[float] = []

    def start(self) -> None:
        self._dispatcher.start()

    async def generate(self, request: Request, group: int) -> Generation:
        self._began.setdefault(str(group), []).append(time.perf_counter())
        return await self._dispatcher.generate(request, group)

    async def stop(self, deadline_s: float) -> None:
        await self._dispatcher.stop(deadline_s)

    async def score(self, request: RewardRequest) -> Score:
        # The samples of a group begin within a millisecond of each other: which of them this is does not matter.
        self.latencies.append(time.perf_counter() - self._began[request.label].pop())
        return Score(1.0)

    async def score_group(self, requests: Sequence[RewardRequest]) -> list[Score]:
        return [await self.score(request) for request in requests]


async def sampled(url: str) -> Burst:
    """One rollout of as many samples, none of them rejected or aborted."""
    config = RolloutConfig(
        prompt_data="prompts.jsonl",
        num_rollout=1,
        rm_type="exact",
        rollout_batch_size=GROUPS,
        n_samples_per_prompt=SAMPLES,
        rollout_max_response_len=RESPONSE_LEN,
        recycle="none",
    )
    dispatcher = Dispatcher()
    dispatcher.add(EngineClient(url, concurrency=STREAMS))
    clock = _Clock(dispatcher)
    began, cpu = time.perf_counter(), time.process_time()
    rollout = await Sampler(config, _Prompts(), clock, clock, _decode).rollout(0, 0)
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    await dispatcher.close()
    assert rollout.report.kept.tokens == STREAMS * RESPONSE_LEN
    return Burst(seconds, cpu_s, clock.latencies)


def _decode(tokens: numpy.typing.NDArray[numpy.int32]) -> str:
    return tokens.tobytes().decode("latin-1")


if __name__ == "__main__":
    main()
