"""All ranks of a real trainer as Ray actors: what they compute, how they fail together, and who is blamed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from r1hpc.actors.patience import Patience
from r1hpc.actors.trainers import TrainerGroup, TrainerLost, TrainersError
from r1hpc.config import Config
from r1hpc.types import Sample
from tests.actors.conftest import START_S, Cluster, Model
from tests.train.parity.samples import make_samples


@pytest.fixture(scope="module")
def trainers(runner: asyncio.Runner, cluster: Cluster, config: Config, model: Model) -> Iterator[TrainerGroup]:
    """Loaded, with a reference."""

    async def start() -> TrainerGroup:
        group = await TrainerGroup.start(config, cluster.launch, cluster.group, cluster.slots, cluster.logs, START_S)
        await group.load_reference(model.torch_dist)
        await group.load(model.torch_dist)
        return group

    group = runner.run(start())
    yield group
    runner.run(group.close())


@pytest.fixture(scope="module")
def samples(model: Model) -> list[Sample]:
    """Of one rollout: 2 groups of 4, in 2 steps."""
    return make_samples(8, json.loads((model.hugging_face / "config.json").read_text())["vocab_size"])


def losses(stats: Any) -> list[float]:
    return [step.metrics["loss"] for step in stats.steps]


def test_a_rollout_trained_after_sleep_save_and_resume_is_the_same(
    runner: asyncio.Runner, trainers: TrainerGroup, samples: list[Sample], tmp_path: Path
) -> None:
    async def work() -> None:
        saved = tmp_path / "iter_0000000"
        first = await trainers.update(samples, 0)
        assert (first.rollout_id, len(first.steps)) == (0, 2)
        await trainers.sleep()
        await trainers.begin_save(saved, 0)
        assert (await trainers.finish_save()).directory == saved
        await trainers.wake()
        wanted = await trainers.update(samples, 1)
        state = await trainers.resume(saved)
        assert (state.iteration, state.optimizer_steps) == (0, 2)
        await trainers.sleep()
        assert losses(await trainers.update(samples, 1)) == losses(wanted) != losses(first)

    runner.run(work())


def test_an_error_of_every_rank_is_raised_once_and_the_trainers_go_on(
    runner: asyncio.Runner, trainers: TrainerGroup, samples: list[Sample], tmp_path: Path
) -> None:
    async def work() -> None:
        bad = [replace(samples[0], reward=float("nan")), *samples[1:]]
        with pytest.raises(TrainersError, match=r"(?s)^update 2: rank [01] at local01: .*reward is nan") as refused:
            await trainers.update(bad, 2)
        assert refused.value.usable
        assert "Traceback" not in str(refused.value)
        with pytest.raises(TrainersError, match=r"(?s)^load: rank [01] at local01: .*nowhere"):
            await trainers.load(tmp_path / "nowhere")
        assert len((await trainers.update(samples, 2)).steps) == 2

    runner.run(work())


def test_memory_is_read_by_rank_and_each_rank_has_its_share_of_the_cores_and_a_log(
    runner: asyncio.Runner, trainers: TrainerGroup, cluster: Cluster
) -> None:
    readings = runner.run(trainers.memory())
    assert [(reading.rank, reading.memory) for reading in readings] == [(0, "host local01"), (1, "host local01")]
    for reading in readings:
        assert 2**28 < reading.process_bytes < reading.total_bytes
        assert 0 < reading.free_bytes < reading.total_bytes
    holders = runner.run(trainers.holders())
    assert holders[0] and all("GiB" in line for line in holders[0])
    for pid in pids(runner, trainers):
        environment = Path(f"/proc/{pid}/environ").read_text()
        assert "GLOO_SOCKET_IFNAME=lo\0" in environment
        assert f"R1HPC_RUN={cluster.launch.run_id}\0" in environment
    assert (cluster.logs / "trainer000-local01.log").stat().st_size > 0
    assert (cluster.logs / "trainer001-local01.log").exists()


def test_a_rank_that_does_not_answer_in_time_is_named(runner: asyncio.Runner, trainers: TrainerGroup) -> None:
    hasty = TrainerGroup(trainers.members, Patience(look_s=2.0))
    frozen = pids(runner, trainers)[1]
    os.kill(frozen, signal.SIGSTOP)
    try:
        with pytest.raises(
            TrainersError, match=r"^waiting for memory: 1 of 2 ranks after 2 s \(missing rank 1 at local01\)$"
        ):
            runner.run(hasty.memory())
        with pytest.raises(TrainersError, match=r"^waiting for memory: 1 of 2"):  # it may be in a collective for ever
            runner.run(hasty.sleep())
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert len(runner.run(trainers.memory())) == 2


def test_a_rank_that_is_killed_in_an_update_is_blamed_and_not_the_rank_that_missed_it(
    runner: asyncio.Runner, trainers: TrainerGroup, samples: list[Sample]
) -> None:
    async def work(pid: int) -> None:
        updating = asyncio.create_task(trainers.update(samples, 3))
        await asyncio.sleep(0.1)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(TrainerLost, match=r"^update 3: rank 1 at local01: its process is gone") as lost:
            await updating
        assert (lost.value.rank, lost.value.host) == (1, "local01")
        with pytest.raises(TrainerLost, match="rank 1"):
            await trainers.sleep()

    runner.run(work(pids(runner, trainers)[1]))


def pids(runner: asyncio.Runner, trainers: TrainerGroup) -> list[int]:
    return runner.run(trainers.pids())
