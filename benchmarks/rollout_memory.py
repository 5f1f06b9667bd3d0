"""Memory of a process that holds a whole rollout of the recipe: 1,024 responses of 32,768 tokens, all in flight.

    python -m benchmarks.rollout_memory [--tokens 32768]

The bytes of the stream are what an engine sends, 128 tokens an event; they are made in this process and go through the
client's parser, the sampler and the samples that the trainer gets. No HTTP, whose buffers are small beside these.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy
from numpy.typing import NDArray

from r1hpc.config.training import RolloutConfig
from r1hpc.rewards.request import RewardRequest, Score
from r1hpc.rollout.protocol import STREAM_INTERVAL, Request, Response
from r1hpc.rollout.sampler import Sampler
from r1hpc.types import Generation, Prompt

GROUPS = 128
SAMPLES = 8
MIB = 2**20


def main() -> None:
    """Run one rollout and print the most memory that this process ever had."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=32_768)
    num_tokens = parser.parse_args().tokens
    before = _peak_mb()
    began = time.perf_counter()
    asyncio.run(_roll_out(num_tokens))
    content = GROUPS * SAMPLES * num_tokens * 8 / MIB
    print(f"{'before_mb':<26} {before:.0f} (Python and what is imported)")
    print(f"{'content_mb':<26} {content:.0f} (a token and a log-prob, 4 B each)")
    print(f"{'peak_mb':<26} {_peak_mb():.0f} after {time.perf_counter() - began:.0f} s")
    print(json.dumps({"peak_mb": round(_peak_mb(), 1)}))


async def _roll_out(num_tokens: int) -> None:
    config = RolloutConfig(
        prompt_data="prompts.jsonl",
        num_rollout=1,
        rm_type="exact",
        rollout_batch_size=GROUPS,
        n_samples_per_prompt=SAMPLES,
        rollout_max_response_len=num_tokens,
        recycle="none",
    )
    rollout = await Sampler(config, _Prompts(), _Engine(num_tokens), _Rewards(), _decode).rollout(0, 0)
    assert rollout.report.kept.tokens == GROUPS * SAMPLES * num_tokens


class _Engine:
    """Streams to all requests in turn, an event to each."""

    def __init__(self, num_tokens: int) -> None:
        self._ends = [*range(STREAM_INTERVAL, num_tokens, STREAM_INTERVAL), num_tokens]

    def start(self) -> None:
        pass

    async def generate(self, request: Request, group: int) -> Generation:
        response = Response(request, "engine")
        for end in self._ends:
            response.add(_event(end - len(response), end, is_last=end == self._ends[-1]))
            await asyncio.sleep(0)
        return response.generation("length")

    async def stop(self, deadline_s: float) -> None:
        pass


def _event(count: int, end: int, *, is_last: bool) -> bytes:
    rows = [[-0.123456789, 100_000 + place, None] for place in range(count)]
    meta = {
        "finish_reason": {"type": "length"} if is_last else None,
        "completion_tokens": end,
        "weight_version": "0",
        "output_token_logprobs": rows,
    }
    return json.dumps({"text": "", "meta_info": meta}).encode()


class _Prompts:
    def take(self, count: int) -> list[Prompt]:
        return [Prompt(index, 0, numpy.arange(1, 200, dtype=numpy.int32), "") for index in range(count)]

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        raise NotImplementedError("a benchmark has nothing to resume")


class _Rewards:
    async def score(self, request: RewardRequest) -> Score:
        return Score(1.0)

    async def score_group(self, requests: Sequence[RewardRequest]) -> list[Score]:
        return [await self.score(request) for request in requests]


def _decode(tokens: NDArray[numpy.int32]) -> str:
    # Four characters a token, as text has.
    return tokens.tobytes().decode("latin-1")


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
