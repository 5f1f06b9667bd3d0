"""What goes wrong in a rollout: rewards that hang, filters that raise, engines that give up; prompts stay queued."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy
import pytest

from r1hpc.rewards.request import RewardRequest, Score
from r1hpc.rollout.dispatch import DispatchError, NoEngineError
from r1hpc.rollout.filters import GroupFilter
from r1hpc.rollout.group import SamplerError
from r1hpc.rollout.oversampling import Limits
from r1hpc.rollout.progress import ProgressLines, RolloutProgress
from r1hpc.rollout.protocol import EngineRefusal, Request
from r1hpc.rollout.sampler import Rollout, Sampler
from r1hpc.types import Generation, Sample, VersionSpan
from tests.rollout.scripted import Rig, Script, ScriptedEngines, decode, make_rig, rollout_config

EASY = Script(seed=1, solvable=1.0)


def rollout(rig: Rig, rollout_id: int = 0) -> Rollout:
    return asyncio.run(rig.sampler.rollout(rollout_id, rig.engines.version))


def indices(result: Rollout) -> list[int]:
    return [group.prompt.index for group in result.groups]


def queue(rig: Rig) -> list[int]:
    return [queued.prompt.index for queued in rig.sampler.state().queue]


def assert_untouched(rig: Rig) -> None:
    """As before the rollout: nothing runs, and the next rollout begins with the first prompt."""
    assert rig.engines.num_pending == 0
    assert (rig.prompts.taken, queue(rig)) == (0, [])


def generation(length: int, **fields: Any) -> Generation:
    tokens = numpy.arange(length, dtype=numpy.int32)
    whole = Generation(tokens, -tokens.astype(numpy.float32), "stop", (VersionSpan(0, 0, length),) if length else ())
    return replace(whole, **fields)


def test_a_reward_that_hangs_does_not_block_the_rollout() -> None:
    rig = make_rig(rollout_config(), EASY)
    rig.rewards.hang = lambda epoch, index: index in (0, 3)
    began = time.monotonic()
    result = rollout(rig)
    assert time.monotonic() - began < 5
    assert len(indices(result)) == 4
    assert {0, 3}.isdisjoint(indices(result))
    assert {0, 3} <= set(queue(rig))


class Grades:
    """Rewards that answer as one function says."""

    def __init__(self, value: float = 1.0, error: Exception | None = None, short: bool = False) -> None:
        self.value, self.error, self.short = value, error, short

    async def score(self, request: RewardRequest) -> Score:
        if self.error is not None:
            raise self.error
        return Score(self.value, "timeout")

    async def score_group(self, requests: Sequence[RewardRequest]) -> list[Score]:
        return [Score(self.value)] * (len(requests) - self.short)


@pytest.mark.parametrize(
    ("grades", "fields", "said"),
    [
        (Grades(float("nan")), {}, r"the reward of prompt \d \(epoch 0\) is nan; it must be finite"),
        (Grades(short=True), {"group_rm": True}, r"1 rewards for a group of 2 responses, prompt \d"),
        (Grades(), {"rm_type": None}, r"has no reward: set rollout.rm_type or rollout.custom_rm_path"),
        (Grades(error=SamplerError("the pool is closed")), {}, "the pool is closed"),
    ],
)
def test_a_reward_that_is_none_ends_the_rollout_and_loses_nothing(
    grades: Grades, fields: dict[str, Any], said: str
) -> None:
    rig = make_rig(rollout_config(), EASY)
    sampler = Sampler(rollout_config(**fields), rig.prompts, rig.engines, grades, decode, limits=Limits(drain_s=0.2))
    with pytest.raises(SamplerError, match=said):
        asyncio.run(sampler.rollout(0, 0))
    assert_untouched(rig)


def test_a_filter_that_raises_ends_the_rollout_and_says_where() -> None:
    def broken(config: object, samples: Sequence[Sample]) -> bool:
        raise KeyError("reward_of_judge")

    rig = make_rig(rollout_config(), EASY)
    sampler = Sampler(
        rig.config, rig.prompts, rig.engines, rig.rewards, decode, GroupFilter(rig.config, broken, "mine.broken")
    )
    with pytest.raises(SamplerError, match=r"filter mine.broken raised KeyError: 'reward_of_judge'; group \d, rewards"):
        asyncio.run(sampler.rollout(0, 0))
    assert_untouched(rig)


def test_a_group_that_would_force_another_wave_is_kept_where_the_filter_says_so() -> None:
    def picky(config: object, samples: Sequence[Sample]) -> dict[str, Any]:
        return {"keep": False, "reason": "dull", "keep_when_insufficient": True}

    config = rollout_config(rollout_batch_size=3, over_sampling_batch_size=5)
    rig = make_rig(config, replace(EASY, longest=1))
    sampler = Sampler(config, rig.prompts, rig.engines, rig.rewards, decode, GroupFilter(config, picky, "mine.picky"))
    result = asyncio.run(sampler.rollout(0, 0))
    # Two of five may go; the third rejection would leave 2 of the 3 that are wanted.
    assert indices(result) == [2, 3, 4]
    assert (result.report.groups.waves, result.report.groups.rejected) == (1, {"dull": 2})


@pytest.mark.parametrize("error", [NoEngineError("no engine to serve for 1800 s"), ValueError("a bug")])
def test_an_error_of_the_engines_ends_the_rollout_and_loses_nothing(error: Exception) -> None:
    rig = make_rig(rollout_config(), EASY)
    rig.engines.spoil = lambda request, group: error if group == 5 else None
    with pytest.raises(type(error), match=str(error)):
        rollout(rig)
    assert_untouched(rig)
    rig.engines.spoil = lambda request, group: None
    assert set(indices(rollout(rig))) <= set(range(8))


def test_a_rollout_after_an_error_is_the_one_that_would_have_been() -> None:
    rig, calm = make_rig(rollout_config(), EASY), make_rig(rollout_config(), EASY)
    rig.engines.spoil = lambda request, group: NoEngineError("none") if group == 2 else None
    with pytest.raises(NoEngineError):
        rollout(rig)
    rig.engines.spoil = lambda request, group: None
    assert indices(rollout(rig)) == indices(rollout(calm))
    assert queue(rig) == queue(calm)


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        (DispatchError("given up after 6 attempts"), "given up after 6 attempts"),
        (generation(0), "an engine returned no token for sample 1"),
        (generation(3, finish_reason="abort"), "an engine aborted sample 1 after 3 tokens, unasked"),
    ],
)
def test_a_group_that_an_engine_gives_up_on_fails_alone_and_is_queued(
    spoiled: Exception | Generation, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(request: Request, group: int) -> Exception | Generation | None:
        return spoiled if request.request_id == "r0-g2-s1" else None

    config = rollout_config(rollout_batch_size=7, over_sampling_batch_size=8)
    rig = make_rig(config, EASY)
    rig.engines.spoil = spoil
    result = rollout(rig)
    assert indices(result) == [0, 1, 3, 4, 5, 6, 7]
    assert (result.report.groups.failed, result.report.groups.recycled) == (1, 1)
    assert queue(rig) == [2]
    assert f"group 2 failed: {said}" in caplog.text


def test_a_prompt_that_an_engine_refuses_is_given_up_at_once() -> None:
    rig = make_rig(rollout_config(rollout_batch_size=7), EASY)
    rig.engines.spoil = lambda request, group: EngineRefusal("prompt too long") if group == 2 else None
    result = rollout(rig)
    assert [prompt.index for prompt in result.given_up] == [2]
    assert (result.report.groups.given_up, queue(rig)) == (1, [])


def test_a_failed_group_forces_another_wave_like_a_rejected_one() -> None:
    rig = make_rig(rollout_config(rollout_batch_size=8), EASY)
    rig.engines.spoil = lambda request, group: DispatchError("gone") if group == 2 else None
    assert rollout(rig).report.groups.waves == 2


def test_a_rollout_of_which_everything_fails_ends_and_says_why() -> None:
    rig = make_rig(rollout_config(), EASY)
    rig.engines.spoil = lambda request, group: EngineRefusal("status 400: no such option top_q")
    with pytest.raises(
        SamplerError, match=r"8 groups failed, more than the 4 that are wanted; .* no such option top_q"
    ):
        rollout(rig)
    assert_untouched(rig)


def test_a_rollout_without_hope_ends_and_says_why() -> None:
    limits = Limits(drain_s=0.2, max_rejected=5)
    rig = make_rig(rollout_config(), Script(solvable=0.0, longest=1), limits=limits)
    with pytest.raises(SamplerError, match=r"more than 5 \* 4 = 20 is hopeless: zero_std_0.0 means"):
        rollout(rig)
    assert_untouched(rig)


def test_tokens_of_another_version_than_the_rollouts_are_refused() -> None:
    rig = make_rig(rollout_config(), EASY)
    rig.engines.version = 3
    with pytest.raises(
        SamplerError, match=r"tokens 0 to \d+ are by weights of version 3, but rollout 0 is of version 4"
    ):
        asyncio.run(rig.sampler.rollout(0, 4))
    assert_untouched(rig)


def test_an_engine_that_does_not_stop_is_told_of_and_the_groups_are_kept() -> None:
    rig = make_rig(rollout_config(), EASY)
    rig.engines.stop_error = DispatchError("not stopped within 60 s: engine 1")
    result = rollout(rig)
    assert len(result.groups) == 4
    assert result.report.not_stopped == "not stopped within 60 s: engine 1"


def test_a_group_is_rewarded_as_a_whole_and_not_at_all_when_it_was_aborted() -> None:
    config = rollout_config(group_rm=True, n_samples_per_prompt=3, dynamic_sampling_filter_path=None)
    rig = make_rig(config, replace(EASY, longest=12))
    result = rollout(rig)
    assert {tuple(sample.reward for sample in group.samples) for group in result.groups} == {(0.0, 0.25, 0.5)}
    # The order of the requests is that of the samples, whichever ended first.
    assert [[request.response.split()[0] for request in group] for group in rig.rewards.groups] == [
        ["0", "1", "2"]
    ] * len(rig.rewards.groups)
    finished = result.report.groups.kept + result.report.groups.surplus
    assert len(rig.rewards.groups) == finished < result.report.groups.submitted


def test_nothing_is_graded_once_the_rollout_stops() -> None:
    rig = make_rig(rollout_config(rollout_batch_size=1, over_sampling_batch_size=4), replace(EASY, longest=40))
    rig.engines.ends_on_stop = True
    counts = rollout(rig).report.groups
    assert (counts.kept, counts.surplus, counts.aborted) == (1, 0, 3)


def test_one_rollout_at_a_time() -> None:
    rig = make_rig(rollout_config(), EASY)

    async def two() -> None:
        first = asyncio.create_task(rig.sampler.rollout(0, 0))
        await asyncio.sleep(0)
        with pytest.raises(SamplerError, match="rollout 1: another one is running"):
            await rig.sampler.rollout(1, 0)
        with pytest.raises(SamplerError, match="between rollouts"):
            rig.sampler.load_state(rig.sampler.state())
        await first

    asyncio.run(two())


def test_the_report_counts_what_was_generated_kept_and_wasted() -> None:
    config = rollout_config(
        rollout_batch_size=2, over_sampling_batch_size=3, recycle="none", rollout_max_response_len=5
    )
    script = Lengths(solvable=1.0)
    rig = make_rig(config, script)
    report = rollout(rig).report
    # Prompt 0 ends after 3 ticks, 1 and 2 together after 5, at the limit.
    assert report.kept.tokens == (2 + 3) + (5 + 1)
    assert report.wasted_tokens == 5 + 1
    assert report.generated_tokens == 17
    assert report.kept.truncated == 0.25
    assert report.kept.response_len_mean == 2.75
    assert report.kept.response_len_max == 5
    assert report.kept.reward_mean == 0.5
    assert report.reward_outcomes == {"graded": 6}
    assert "2 groups kept of 3 in 1 waves (0 rejected; 0 failed, 1 surplus, 0 aborted" in report.line()
    assert "6 of 17 tokens wasted" in report.line()


class Lengths(Script):
    """Written by hand."""

    def length(self, epoch: int, index: int, sample: int) -> int:
        return {(0, 0): 2, (0, 1): 3, (1, 0): 9, (1, 1): 1, (2, 0): 9, (2, 1): 1}[index, sample]


def test_a_callback_that_fails_is_told_of_once_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def callback(progress: RolloutProgress) -> None:
        raise RuntimeError("no terminal")

    often = Limits(drain_s=0.2, progress_every_s=0.0)
    assert len(rollout(make_rig(rollout_config(), EASY, progress=callback, limits=often)).groups) == 4
    assert caplog.text.count("RuntimeError: no terminal") == 1


def test_progress_is_told_until_the_end() -> None:
    seen: list[RolloutProgress] = []
    often = Limits(drain_s=0.2, progress_every_s=0.0)
    result = rollout(make_rig(rollout_config(), EASY, progress=seen.append, limits=often))
    early = next(progress for progress in seen if progress.running_samples)
    last = seen[-1]
    assert (early.kept, early.running, early.running_samples, early.waves) == (0, 8, 16, 1)
    assert (early.longest_group, early.eta_s) == (0, None)
    assert (last.kept, last.rejected, last.target) == (4, 0, 4)
    assert last.generated_tokens == result.report.generated_tokens
    kept = [progress.kept for progress in seen]
    assert kept == sorted(kept)


def test_lines_of_progress_come_every_few_seconds_and_estimate_the_end() -> None:
    said: list[str] = []
    now = iter([0.0, 5.0, 16.0])
    lines = ProgressLines(said.append, every_s=15.0, clock=lambda: next(now))
    progress = RolloutProgress(
        rollout_id=7,
        target=128,
        kept=96,
        rejected=61,
        failed=0,
        running=99,
        waves=1,
        running_samples=410,
        generated_tokens=12_000_000,
        longest_s=240.0,
        longest_group=1801,
        seconds=300.0,
    )
    for _ in range(3):
        lines(progress)
    line = (
        "rollout 7: 96 of 128 groups kept, 61 rejected, 99 running (wave 1), 40,000 tokens/s,"
        " longest of 410 samples 4 min (group 1801), 1.67 min left"
    )
    assert said == [line, line]


def test_a_rollout_whose_stop_is_cancelled_too_leaves_no_task_behind() -> None:
    class DeafEngines(ScriptedEngines):
        async def generate(self, request: Request, group: int) -> Generation:
            await asyncio.Event().wait()
            raise AssertionError

        async def stop(self, deadline_s: float) -> None:
            await asyncio.Event().wait()

    async def cancel_twice() -> set[str]:
        rig = make_rig(rollout_config(), replace(EASY, longest=1))
        engines = DeafEngines(rig.engines.script)
        sampler = Sampler(rig.config, rig.prompts, engines, rig.rewards, decode, limits=Limits(drain_s=0.2))
        running = asyncio.create_task(sampler.rollout(0, 0))
        for _ in range(2):
            await asyncio.sleep(0.05)
            running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (rig.prompts.taken, sampler.state().queue) == (0, ())
        await asyncio.sleep(0.05)
        return {task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("group")}

    assert asyncio.run(cancel_twice()) == set()


def test_a_prompt_beyond_the_vocabulary_ends_the_rollout_before_an_engine_gets_it() -> None:
    # The tokens of prompt 6 are 1 and 7.
    rig = make_rig(rollout_config(), EASY, vocab_size=7)
    said = r"prompt 6 \(epoch 0\): token 1 of 2 has the id 7, but the model's vocabulary is 0 to 6 "
    with pytest.raises(SamplerError, match=said):
        rollout(rig)
    assert_untouched(rig)
    assert not any(7 in request.prompt for request in rig.engines.requests)
    assert len(rollout(make_rig(rollout_config(), EASY, vocab_size=9)).groups) == 4
