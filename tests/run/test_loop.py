"""The loop from its beginning to its end, killed and stopped at every step on the way."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r1hpc.checkpoint.commit import newest_commit
from r1hpc.cluster.stop import StopListener
from r1hpc.interrupt import OutOfTime, StopRequested
from r1hpc.rollout.state import SamplerState
from r1hpc.rundir import RunDir
from r1hpc.saving import SAMPLER
from tests.run.rehearsed_loop import NUM_ROLLOUT, Killed, Rehearsed, Steps, Trained, attempt


def run(root: Path, steps: Steps | None = None, **options: Any) -> Rehearsed:
    """One attempt, to its end."""

    async def to_the_end() -> Rehearsed:
        rehearsed = await attempt(root, steps or Steps(), **options)
        await rehearsed.loop.run()
        rehearsed.metrics.close()
        return rehearsed

    return asyncio.run(asyncio.wait_for(to_the_end(), 60))


def lines(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunDir(root).metrics.read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[Trained]:
    return run(tmp_path_factory.mktemp("whole")).trainers.trained


def test_an_iteration_samples_finishes_the_commit_before_trains_and_begins_the_next_commit(tmp_path: Path) -> None:
    told = run(tmp_path, num_rollout=3).steps.told
    assert told == [
        "load",
        *("rollout phase, weights 0", "rollout 0", "rolled 0", "train phase", "update 0", "updated 0"),
        *("rollout phase, weights 1", "rollout 1", "rolled 1", "train phase", "update 1", "updated 1"),
        "begin_save 1",
        *("rollout phase, weights 2", "rollout 2", "rolled 2", "finish_save 1"),
        *("train phase", "update 2", "updated 2", "begin_save 2"),
        *("rollout phase, weights 3", "finish_save 2"),
    ]
    commit = newest_commit(RunDir(tmp_path).checkpoints)
    assert commit is not None
    assert (commit.iteration, commit.record["weight_version"], commit.record["run_id"]) == (2, 3, "r1")


def test_every_iteration_is_recorded_once_with_evaluations_where_they_are_due(tmp_path: Path) -> None:
    run(tmp_path)
    recorded = lines(tmp_path)
    assert [line["iteration"] for line in recorded] == list(range(NUM_ROLLOUT))
    assert [line["train/optimizer_step"] for line in recorded] == [1, 2, 3, 4, 5, 6]
    assert [line["iteration"] for line in recorded if "eval/heldout/pass@1" in line] == [0, 4]
    assert recorded[-1]["final_eval/heldout/weight_version"] == NUM_ROLLOUT
    assert {(line["memory/least_free"], line["memory/largest_trainer"]) for line in recorded} == {(99, 11)}
    assert [line["committed"] for line in recorded] == [None, None, 1, 1, 3, 3]
    assert [line["saving"] for line in recorded] == [None, 1, None, 3, None, 5]


@pytest.mark.parametrize("recycle", ["none", "prompts", "tokens"])
def test_no_prompt_of_an_epoch_is_trained_on_twice(recycle: str, tmp_path: Path) -> None:
    trained = run(tmp_path, recycle=recycle).trainers.trained
    prompts = [tokens[:2] for _, samples in trained for tokens in samples]
    assert len(set(prompts)) * 3 == len(prompts) == NUM_ROLLOUT * 4 * 3


def test_killed_at_any_step_the_next_attempts_train_what_an_uninterrupted_run_trains(
    tmp_path: Path, uninterrupted: list[Trained]
) -> None:
    step = 0
    while True:
        step += 1
        root = tmp_path / str(step)
        killed = Steps(step, strike=_kill)
        try:
            run(root, killed)
        except Killed:
            assert run(root).trainers.trained == uninterrupted, killed.told[-1]
            assert [line["iteration"] for line in lines(root)] == list(range(NUM_ROLLOUT)), killed.told[-1]
        else:
            break
    assert step > 40


@pytest.mark.parametrize("recycle", ["none", "prompts"])
def test_stopped_at_any_step_nothing_trained_is_lost_and_the_rest_is_the_same(recycle: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", recycle=recycle).trainers.trained
    step, kept = 0, set()
    while True:
        step += 1
        root = tmp_path / str(step)
        stopped = _stopped(root, step, recycle)
        if stopped is None:
            break
        again = run(root, recycle=recycle)
        assert again.trainers.trained == whole, step
        assert again.loop.first == len(stopped.trainers.trained), "what was trained was committed before leaving"
        kept.add(again.loop.first)
    assert kept == set(range(NUM_ROLLOUT + 1))


def test_without_time_for_a_commit_the_attempt_leaves_at_once_on_the_last_one(tmp_path: Path) -> None:
    """A save takes 1 s by the plan; whoever asks waits for nothing."""
    stopped = _stopped(tmp_path, 23, "prompts", patience_s=0.0, save_interval=2)
    assert stopped is not None
    assert stopped.steps.told[22] == "rollout 3"
    assert len(stopped.trainers.trained) == 3, "iteration 2 is trained"
    commit = newest_commit(RunDir(tmp_path).checkpoints)
    assert commit is not None
    assert commit.iteration == 1, "and lost"


@pytest.mark.parametrize("recycle", ["none", "prompts"])
def test_stopped_at_any_step_without_any_grace_the_next_attempt_goes_on_from_the_last_commit(
    recycle: str, tmp_path: Path
) -> None:
    """Also in the middle of an update, after which the weights are no iteration's."""
    whole = run(tmp_path / "whole", recycle=recycle).trainers.trained
    step, lost = 0, 0
    while True:
        step += 1
        root = tmp_path / str(step)
        stopped = _stopped(root, step, recycle, patience_s=0.0)
        if stopped is None:
            break
        again = run(root, recycle=recycle)
        assert again.trainers.trained == whole, step
        lost += len(stopped.trainers.trained) - again.loop.first
    assert lost > 0


def test_an_update_that_would_not_end_in_time_is_not_begun_and_what_was_trained_before_is_committed(
    tmp_path: Path,
) -> None:
    whole = run(tmp_path / "whole").trainers.trained

    def slow_updates(made: Rehearsed) -> None:
        for _ in range(3):
            made.loop.clock.updated(1000.0)

    at = Steps()
    run(tmp_path / "steps", at)
    stopped = _stopped(tmp_path / "a", 1 + at.told.index("rolled 3"), "prompts", patience_s=500.0, change=slow_updates)
    assert stopped is not None
    assert stopped.steps.told[-3:] == ["rolled 3", "begin_save 2", "finish_save 2"]
    again = run(tmp_path / "a")
    assert again.loop.first == 3
    assert again.trainers.trained == whole, "the prompts of the rollout that nobody trained on are taken again"


def test_a_commit_made_on_leaving_keeps_what_the_rollout_had_begun(tmp_path: Path) -> None:
    at = Steps()
    run(tmp_path / "steps", at, recycle="tokens")
    stopped = _stopped(tmp_path / "a", 1 + at.told.index("rollout 3"), "tokens")
    assert stopped is not None
    commit = newest_commit(RunDir(tmp_path / "a").checkpoints)
    assert commit is not None
    assert commit.iteration == 2
    state = SamplerState.load(commit.directory / SAMPLER)
    assert any(draft is not None for queued in state.queue for draft in queued.begun)


def test_an_allocation_that_ends_soon_is_left_with_everything_committed(tmp_path: Path) -> None:
    """Iterations take no time here, a save 1 s by the plan: 12 s before the end there is time, 10 s before it none."""
    clock = [0.0]
    rehearsed: list[Rehearsed] = []

    async def until_out_of_time() -> None:
        steps = Steps(at=None)
        made = await attempt(tmp_path, steps, now=lambda: clock[0], end_time=100.0, save_interval=100)
        rehearsed.append(made)
        tell = steps.tell

        def pass_time(what: str) -> None:
            if what == "updated 2":
                clock[0] = 90.0
            tell(what)

        steps.tell = pass_time  # type: ignore[method-assign]
        with pytest.raises(OutOfTime, match="no time for iteration 3: 10 s of the allocation are left"):
            await made.loop.run()
        assert await made.loop.saving.leave() == "iteration 2 is committed"

    asyncio.run(until_out_of_time())
    commit = newest_commit(RunDir(tmp_path).checkpoints)
    assert commit is not None
    assert commit.iteration == 2
    assert len(rehearsed[0].trainers.trained) == 3


def _kill() -> None:
    raise Killed


def _stopped(
    root: Path,
    step: int,
    recycle: str,
    patience_s: float = 3600.0,
    change: Callable[[Rehearsed], None] = lambda made: None,
    **options: Any,
) -> Rehearsed | None:
    """An attempt that is asked to stop at a step, and leaves as the driver does; None where it ended before."""

    async def until_stopped() -> Rehearsed | None:
        reader, writer = os.pipe()
        listener = StopListener(os.fdopen(reader, encoding="utf-8"))
        agent = os.fdopen(writer, "w", encoding="utf-8")

        def ask() -> None:
            print(
                json.dumps({"stop": "SIGTERM at node01", "deadline": time.time() + patience_s}), file=agent, flush=True
            )
            while listener.requested is None:
                pass

        steps = Steps(step, strike=ask)
        made = await attempt(root, steps, recycle=recycle, listener=listener, **options)
        change(made)
        try:
            await made.loop.run()
        except StopRequested:
            await made.loop.saving.leave()
            return made
        finally:
            agent.close()
        return None

    return asyncio.run(asyncio.wait_for(until_stopped(), 60))
