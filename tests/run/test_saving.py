"""How long a commit takes, and what becomes of one when something else fails."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

import r1hpc.run
from r1hpc import exit_codes
from r1hpc.actors.collective_call import TrainerLost, TrainersError
from r1hpc.checkpoint.commit import newest_commit
from r1hpc.cluster.outcome import Outcome
from r1hpc.rollout.group import SamplerError
from r1hpc.rollout.sampler import Rollout
from r1hpc.rundir import AttemptDir, RunDir
from tests.run.rehearsed_loop import Rehearsed, Steps, attempt

ROLLOUT_S = 0.6


def test_a_commit_takes_what_writing_it_takes_and_not_the_rollout_beside_it(tmp_path: Path) -> None:
    async def story() -> dict[str, Any]:
        made = await attempt(tmp_path, Steps())
        with made.loop.saving.update(0):
            pass
        await made.loop.saving.commit_if_due(last=True)
        await asyncio.sleep(ROLLOUT_S)
        assert made.loop.saving.take_seconds() == {}
        await made.loop.saving.finish()
        state = made.loop.clock.state()
        assert made.loop.saving.take_seconds() == {"commit": state["save_s"][-1]}
        assert made.loop.saving.take_seconds() == {}  # told once
        return state

    began = time.monotonic()
    (save_s,) = asyncio.run(story())["save_s"]
    # All but the sleep, however slow this machine is now.
    assert 0.01 < save_s < time.monotonic() - began - 0.9 * ROLLOUT_S


def test_engines_that_fail_cost_no_iteration_that_was_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(made: Rehearsed) -> None:
        sample = made.loop.rollouts.rollout

        async def rollout(rollout_id: int, weight_version: int) -> Rollout:
            if rollout_id == 3:
                raise SamplerError("no engine answers")
            return await sample(rollout_id, weight_version)

        made.loop.rollouts.rollout = rollout  # type: ignore[method-assign]

    outcome = _looped(tmp_path, monkeypatch, fail)
    assert outcome.exit_code == exit_codes.CRASHED
    assert outcome.reason == "SamplerError: no engine answers; iteration 2 is committed"
    commit = newest_commit(RunDir(tmp_path).checkpoints)
    assert commit is not None
    assert commit.iteration == 2


@pytest.mark.parametrize(
    ("error", "kept", "lost_nodes"),
    [
        (TrainersError("update 3: rank 1: a gradient is not finite"), 2, ()),
        (TrainerLost("update 3: rank 1 at node02: its process is gone", 1, "node02"), 1, ("node02",)),
    ],
)
def test_of_an_update_that_fails_the_iteration_before_is_kept_if_all_trainers_have_answered(
    error: TrainersError, kept: int, lost_nodes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error.usable = not lost_nodes

    def fail(made: Rehearsed) -> None:
        train = made.trainers.update

        async def update(samples: Any, rollout_id: int) -> Any:
            if rollout_id == 3:
                raise error
            return await train(samples, rollout_id)

        made.trainers.update = update  # type: ignore[method-assign]

    outcome = _looped(tmp_path, monkeypatch, fail)
    assert (outcome.exit_code, outcome.lost_nodes) == (exit_codes.CRASHED, lost_nodes)
    commit = newest_commit(RunDir(tmp_path).checkpoints)
    assert commit is not None
    assert commit.iteration == kept


def _looped(root: Path, monkeypatch: pytest.MonkeyPatch, change: Any) -> Outcome:
    """How the driver leaves a loop that was changed so; commits come after iterations 1, 3 and 5."""
    monkeypatch.setattr(r1hpc.run, "TOLD_S", 0.0)

    async def story() -> Outcome:
        made = await attempt(root, Steps())
        change(made)
        return await r1hpc.run._looped(RunDir(root), AttemptDir(root / "attempts" / "1-r0"), made.loop)

    return asyncio.run(asyncio.wait_for(story(), 60))
