"""Two real servers, one of them killed in the middle of a rollout."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import psutil

from r1hpc.config import Config
from r1hpc.rollout.client import EngineClient
from r1hpc.rollout.dispatch import Dispatcher, DispatchLimits
from r1hpc.rollout.filters import GroupFilter
from r1hpc.rollout.protocol import BOOT_VERSION
from r1hpc.rollout.sampler import Rollout, Sampler
from r1hpc.rollout.server import EngineServer
from r1hpc.types import Prompt
from tests.rollout.conftest import ENGINE_KEY, START_S, engine_process
from tests.rollout.scripted import Alternating, decode

GROUPS, SAMPLES = 6, 4


class Numbered:
    """Prompts of 8 tokens, no two alike."""

    def __init__(self) -> None:
        self.taken = 0

    def take(self, count: int) -> list[Prompt]:
        numbers = range(self.taken, self.taken + count)
        self.taken += count
        return [Prompt(n, 0, numpy.asarray([1, *range(10 + n, 17 + n)], numpy.int32), str(n)) for n in numbers]

    def state(self) -> dict[str, Any]:
        return {"taken": self.taken}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.taken = state["taken"]


def test_a_server_killed_in_the_middle_costs_no_group_and_doubles_none(
    engine_server: EngineServer, rollout_config: Config, tmp_path: Path
) -> None:
    async def run() -> tuple[Rollout, Alternating, list[str]]:
        lost: list[str] = []
        async with EngineServer(rollout_config, engine_process(1), tmp_path, secret=ENGINE_KEY) as second:
            await second.wait_until_healthy(START_S)
            dispatcher = Dispatcher(DispatchLimits(backoff_s=0.05), on_down=lambda name, _: lost.append(name))
            for server in (engine_server, second):
                dispatcher.add(
                    EngineClient(server.process.url, concurrency=12, name=server.process.name, secret=ENGINE_KEY)
                )
            fields = {
                "rollout_batch_size": GROUPS,
                "over_sampling_batch_size": GROUPS,
                "n_samples_per_prompt": SAMPLES,
                "rollout_max_response_len": 400,
            }
            config = type(rollout_config.rollout)(**(rollout_config.rollout.model_dump() | fields))
            rewards = Alternating()
            sampler = Sampler(config, Numbered(), dispatcher, rewards, decode, GroupFilter.of(config))
            rolling = asyncio.create_task(sampler.rollout(0, BOOT_VERSION))
            watcher = EngineClient(second.process.url, concurrency=1, secret=ENGINE_KEY)
            while not await watcher.running():
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)  # some tokens have come by now
            await watcher.close()
            assert second.pid is not None
            (server_process,) = psutil.Process(second.pid).children()
            server_process.kill()
            rollout = await rolling
            await dispatcher.close()
            assert second.ended() is not None or not second.serves
            return rollout, rewards, lost

    rollout, rewards, lost = asyncio.run(asyncio.wait_for(run(), 2 * START_S))
    assert lost == [engine_process(1).name]
    assert [group.prompt.index for group in rollout.groups] == list(range(GROUPS))
    assert Counter(sample.group_index for sample in rollout.samples) == dict.fromkeys(range(GROUPS), SAMPLES)
    assert rewards.scored == {str(n): SAMPLES for n in range(GROUPS)}
    assert all(sample.response_len == 400 or sample.finish_reason == "stop" for sample in rollout.samples)
