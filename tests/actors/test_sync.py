"""A sync through the trainers' actors, led by their first rank; to engines that are shelves."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from r1hpc.actors.trainers import TrainerGroup, TrainerLost, TrainersError
from r1hpc.config import Config
from r1hpc.rollout.engine_control import EngineControl
from r1hpc.rollout.versions import capabilities
from r1hpc.sync.endpoint import EngineEndpoint
from tests.actors.conftest import START_S, Cluster, Model
from tests.sync.shelf_server import ShelfServer

TIMEOUT_S = 60.0
KNOWN = capabilities("0.5.21")
NOWHERE = EngineEndpoint("gone", EngineControl("http://127.0.0.1:9"), KNOWN, (1,))


@pytest.fixture(scope="module")
def trainers(runner: asyncio.Runner, cluster: Cluster, config: Config, model: Model) -> Iterator[TrainerGroup]:
    """Asleep, with weights."""

    async def start() -> TrainerGroup:
        group = await TrainerGroup.start(config, cluster.launch, cluster.group, cluster.slots, cluster.logs, START_S)
        await group.load(model.torch_dist)
        await group.sleep()
        return group

    group = runner.run(start())
    yield group
    runner.run(group.close())


def endpoint(shelf: ShelfServer, *ranks: int) -> EngineEndpoint:
    return EngineEndpoint("shelf", EngineControl(shelf.url, timeout_s=TIMEOUT_S), KNOWN, ranks)


def test_every_rank_of_an_engine_is_given_all_weights_and_the_next_sync_the_same(
    runner: asyncio.Runner, trainers: TrainerGroup
) -> None:
    async def work() -> None:
        async with ShelfServer().serving() as shelf:
            for version in (1, 2):
                report = await trainers.sync([endpoint(shelf, 1, 0)], version, timeout_s=TIMEOUT_S)
                assert (report.version, report.published, report.failed) == (version, ("shelf",), {})
                assert report.bytes_per_gpu > 0 and report.seconds["total"] > 0
            assert shelf.versions == ["default", "1", "default", "2"]
            one, other = shelf.ranks
            assert len(one.tensors) > 50 and one.tensors.keys() == other.tensors.keys()

    runner.run(work())


def test_an_engine_that_is_gone_or_takes_too_long_is_told_and_the_trainers_go_on(
    runner: asyncio.Runner, trainers: TrainerGroup
) -> None:
    async def work() -> None:
        async with ShelfServer().serving() as shelf:
            report = await trainers.sync([endpoint(shelf, 0), NOWHERE], 3, timeout_s=TIMEOUT_S)
            assert report.published == ("shelf",)
            assert "no answer" in report.failed["gone"]
            report = await trainers.sync([endpoint(shelf, 0, 1)], 4, timeout_s=0.001)
            assert report.published == ()
            assert "weights 4: not with the engines within 0.001 s (sync.timeout_s)" in report.failed["shelf"]
            report = await trainers.sync([endpoint(shelf, 0, 1)], 5, timeout_s=TIMEOUT_S)
            assert report.published == ("shelf",)

    runner.run(work())


def test_what_the_trainers_raise_is_raised_and_leaves_them_usable(
    runner: asyncio.Runner, trainers: TrainerGroup
) -> None:
    async def work() -> None:
        async with ShelfServer().serving() as shelf:
            twice = [endpoint(shelf, 0), endpoint(shelf, 0)]
            with pytest.raises(TrainersError, match=r"^weights 6: rank [01] at local01: couriers \(0, 0\)") as refused:
                await trainers.sync(twice, 6, timeout_s=TIMEOUT_S)
            assert refused.value.usable
            report = await trainers.sync([endpoint(shelf, 0)], 7, timeout_s=TIMEOUT_S)
            assert report.published == ("shelf",)

    runner.run(work())


def test_a_rank_that_is_killed_in_a_sync_is_blamed_and_not_those_that_wait_for_it(
    runner: asyncio.Runner, trainers: TrainerGroup
) -> None:
    async def work() -> None:
        _, victim = await trainers.pids()
        async with ShelfServer().serving() as shelf:
            shelf.hang_at = 1
            syncing = asyncio.create_task(trainers.sync([endpoint(shelf, 0, 1)], 9, timeout_s=4 * TIMEOUT_S))
            while shelf.num_payloads < 2:
                await asyncio.sleep(0.001)
            os.kill(victim, signal.SIGKILL)
            with pytest.raises(TrainerLost, match=r"^weights 9: rank 1 at local01: its process is gone") as lost:
                await syncing
            assert (lost.value.rank, lost.value.host) == (1, "local01")

    runner.run(work())
