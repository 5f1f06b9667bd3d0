"""Real trainers and a real engine on the same slots, in turns: what one phase leaves is what the other finds."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy
import psutil
import pytest

from r1hpc.actors.engines import EngineGroup
from r1hpc.actors.trainers import TrainerGroup, TrainerLost
from r1hpc.cluster.processes import RUN
from r1hpc.colocate import Colocation, WakingNeeds
from r1hpc.config import Config
from r1hpc.plan.model_shape import read_model_shape
from r1hpc.plan.plan import make_plan
from r1hpc.rollout.dispatch import Dispatcher, DispatchLimits
from r1hpc.rollout.protocol import Request
from r1hpc.rollout.sampling import SamplingParams
from r1hpc.types import Generation, Sample, VersionSpan
from tests.actors.conftest import START_S, Cluster, Model

pytestmark = pytest.mark.timeout(900)  # it starts an engine twice; on a busy machine each takes minutes

SECRET = "0123456789abcdef"
LIMITS = DispatchLimits(no_engine_s=300.0, health_interval_s=2.0)
PROMPTS = (numpy.arange(5, 17, dtype=numpy.int32), numpy.arange(40, 47, dtype=numpy.int32))


@dataclass(frozen=True)
class World:
    """Both sides, as the composition root makes them."""

    trainers: TrainerGroup
    engines: EngineGroup
    dispatcher: Dispatcher
    colocation: Colocation
    cluster: Cluster


@pytest.fixture(scope="module")
def world(runner: asyncio.Runner, cluster: Cluster, config: Config, model: Model) -> Iterator[World]:
    """Two trainers, and one engine on the first one's slot."""
    launch = replace(cluster.launch, hosts=(replace(cluster.launch.head, slots=1),))

    async def start() -> World:
        engines = await EngineGroup.start(
            config, launch, cluster.group, cluster.slots[:1], cluster.logs, START_S, SECRET
        )
        assert await engines.release_memory() == {}
        trainers = await TrainerGroup.start(config, cluster.launch, cluster.group, cluster.slots, cluster.logs, START_S)
        await trainers.load_reference(model.torch_dist)
        await trainers.load(model.torch_dist)
        dispatcher = Dispatcher(LIMITS, on_down=engines.report_down)
        needs = WakingNeeds.of(make_plan(config, read_model_shape(model.hugging_face)))
        return World(
            trainers, engines, dispatcher, Colocation(trainers, engines, dispatcher, needs, config.sync), cluster
        )

    world = runner.run(start())
    yield world

    async def close() -> None:
        await world.colocation.close()
        await world.dispatcher.close()
        await world.engines.close()
        await world.trainers.close()

    runner.run(close())
    assert server_pids(world.cluster) == []


async def generate(dispatcher: Dispatcher, config: Config, tokens: int = 12) -> list[Sample]:
    """A rollout of 2 prompts with 4 responses each; every other response is rewarded."""
    params = SamplingParams(config.rollout.rollout_temperature, top_p=1.0, top_k=-1, max_new_tokens=tokens)
    dispatcher.start()
    requests = [Request(PROMPTS[number // 4], params, f"{number}") for number in range(8)]
    done = await asyncio.gather(*(dispatcher.generate(request, int(request.request_id) // 4) for request in requests))
    await dispatcher.stop(30)
    return [sample(number, generation) for number, generation in enumerate(done)]


def sample(number: int, generation: Generation) -> Sample:
    (span,) = generation.versions
    assert span == VersionSpan(span.version, 0, len(generation.tokens))
    return Sample(
        index=number,
        group_index=number // 4,
        tokens=numpy.concatenate([PROMPTS[number // 4], generation.tokens]),
        response_len=len(generation.tokens),
        reward=float(number % 2),
        rollout_logprobs=generation.logprobs,
        weight_version=span.version,
    )


def test_each_rollout_is_sampled_from_the_weights_of_the_update_before(
    runner: asyncio.Runner, world: World, config: Config
) -> None:
    colocation = world.colocation

    async def iterate(iteration: int) -> float:
        async with colocation.rollout_phase() as dispatcher:
            assert dispatcher is not None
            samples = await generate(dispatcher, config)
        assert {sample.weight_version for sample in samples} == {iteration}
        async with colocation.train_phase() as trainers:
            stats = await trainers.update(samples, iteration)
        colocation.version = iteration + 1
        return stats.steps[0].metrics["mismatch_abs"]

    first = runner.run(iterate(0))
    assert set(colocation.take_seconds()) == {
        "trainers_sleep", "memory", "engines_wake", "sync", "engines_sleep", "trainers_wake"
    }  # fmt: skip
    # Both compute in float32: anything but rounding would be other weights, positions or temperature.
    assert first < 1e-5
    assert runner.run(iterate(1)) < 1e-5
    assert colocation.last_sync is not None
    assert (colocation.last_sync.version, colocation.last_sync.published) == (1, ("engine0",))


def test_a_phase_that_ended_in_an_error_may_be_entered_again(
    runner: asyncio.Runner, world: World, config: Config
) -> None:
    async def work() -> None:
        with pytest.raises(ZeroDivisionError):
            async with world.colocation.rollout_phase():
                raise ZeroDivisionError
        published = world.colocation.last_sync
        async with world.colocation.rollout_phase() as dispatcher:
            assert dispatcher is not None
            assert len(await generate(dispatcher, config)) == 8
        assert world.colocation.last_sync is published  # it had the weights
        with pytest.raises(ZeroDivisionError):
            async with world.colocation.train_phase():
                raise ZeroDivisionError
        async with world.colocation.train_phase() as trainers:
            assert all(reading.free_bytes for reading in await trainers.memory())

    runner.run(work())


def test_an_entry_that_was_cancelled_in_the_middle_is_made_good_by_the_next(
    runner: asyncio.Runner, world: World, config: Config
) -> None:
    async def enter() -> None:
        async with world.colocation.rollout_phase():
            raise AssertionError("it was to be cancelled")

    async def work() -> None:
        async with world.colocation.train_phase():
            assert not world.engines.hold_memory
        entry = asyncio.create_task(enter())
        while not world.engines.hold_memory:
            await asyncio.sleep(0.01)
        entry.cancel()  # in the sync: the engine has memory for weights, and none
        with pytest.raises(asyncio.CancelledError):
            await entry
        async with world.colocation.rollout_phase() as dispatcher:
            assert dispatcher is not None
            samples = await generate(dispatcher, config)
        assert {sample.weight_version for sample in samples} == {world.colocation.version}

    runner.run(work())


def test_an_engine_that_still_runs_requests_is_emptied_before_it_sleeps(
    runner: asyncio.Runner, world: World, config: Config
) -> None:
    async def work() -> None:
        async with world.colocation.rollout_phase() as dispatcher:
            assert dispatcher is not None
            client = world.engines.client("engine0")
            params = SamplingParams(1.0, top_p=1.0, top_k=-1, max_new_tokens=400)
            requests = [Request(PROMPTS[0], params, f"left{number}") for number in range(8)]
            left = [asyncio.create_task(client.generate(request)) for request in requests]
            while not await client.running():
                await asyncio.sleep(0.05)
        async with world.colocation.train_phase():
            assert world.engines.up == ["engine0"]
        assert "abort" in [(await task).finish_reason for task in left]
        await client.close()

    runner.run(work())


def test_a_killed_engine_comes_back_with_the_weights_and_finishes_the_rollout(
    runner: asyncio.Runner, world: World, config: Config
) -> None:
    async def work() -> None:
        async with world.colocation.rollout_phase() as dispatcher:
            assert dispatcher is not None
            rollout = asyncio.create_task(generate(dispatcher, config, tokens=120))
            await asyncio.sleep(0.5)
            for pid in server_pids(world.cluster):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            samples = await rollout
            assert {sample.weight_version for sample in samples} == {world.colocation.version}
            assert len(samples) == 8
        assert world.colocation.version == 2
        logs = sorted(path.name for path in world.cluster.logs.glob("engine0*.log"))
        assert logs == ["engine0-owner.log", "engine0-restart1.log", "engine0.log"]

    runner.run(work())


def test_an_engine_that_got_no_weights_in_time_is_started_again_and_given_them(
    runner: asyncio.Runner, world: World, config: Config
) -> None:
    async def work() -> None:
        async with world.colocation.train_phase():
            world.colocation.version += 1  # so the engine's are old
        patient = world.colocation._sync
        world.colocation._sync = patient.model_copy(update={"timeout_s": 0.01})
        async with world.colocation.rollout_phase() as dispatcher:
            assert world.engines.up == []
            world.colocation._sync = patient
            assert dispatcher is not None
            samples = await generate(dispatcher, config)
        assert {sample.weight_version for sample in samples} == {world.colocation.version}

    runner.run(work())


def test_a_sync_that_is_cancelled_while_its_engine_hangs_is_over_soon_and_the_trainers_can_be_asked(
    runner: asyncio.Runner, world: World, config: Config
) -> None:
    async def enter() -> None:
        async with world.colocation.rollout_phase():
            raise AssertionError("it was to be cancelled")

    async def work() -> None:
        async with world.colocation.train_phase():
            world.colocation.version += 1  # so the engine's weights are old
        entry = asyncio.create_task(enter())
        async with asyncio.timeout(60):
            while not world.engines.hold_memory:
                await asyncio.sleep(0.001)
            for pid in server_pids(world.cluster):
                os.kill(pid, signal.SIGSTOP)
            while not world.colocation._syncing.locked():
                await asyncio.sleep(0.001)
        began = time.monotonic()
        entry.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entry
        assert len(await world.trainers.memory()) == 2
        assert time.monotonic() - began < config.sync.timeout_s / 4
        async with world.colocation.rollout_phase() as dispatcher:
            assert dispatcher is not None
            samples = await generate(dispatcher, config)
        assert {sample.weight_version for sample in samples} == {world.colocation.version}

    runner.run(work())


def test_a_trainer_that_dies_in_a_rollout_ends_it_and_is_named(runner: asyncio.Runner, world: World) -> None:
    async def work() -> None:
        with pytest.raises(TrainerLost, match="rank 1 at local01: its process is gone"):
            async with world.colocation.rollout_phase():
                os.kill((await world.trainers.pids())[1], signal.SIGKILL)
                await asyncio.sleep(60)

    runner.run(work())


def server_pids(cluster: Cluster) -> list[int]:
    """Of the processes of SGLang's servers that the cluster's actors have started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = process.cmdline()
            if process.environ().get(RUN) == cluster.launch.run_id and _is_server(words):
                found.append(process.pid)
    return found


def _is_server(words: list[str]) -> bool:
    return any("guarded_server" in word or "sglang" in word for word in words) and not any("keeper" in w for w in words)
