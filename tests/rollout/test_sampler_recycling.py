"""What becomes of groups that are not trained on; no prompt is lost, and a saved state goes on exactly."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1hpc.rollout.group import SamplerError
from r1hpc.rollout.sampler import Rollout
from r1hpc.rollout.state import SamplerState
from r1hpc.types import Prompt, Sample
from tests.rollout.scripted import Key, Rig, Script, key_of, logprobs_of, make_rig, response_tokens, rollout_config

SETTINGS = {
    "seed": st.integers(0, 10**6),
    "target": st.integers(1, 4),
    "extra": st.integers(0, 6),
    "longest": st.sampled_from([1, 4, 12]),
    "num_prompts": st.integers(3, 30),
}


def make(recycle: str, seed: int, target: int, extra: int, longest: int, num_prompts: int, max_drops: int = 1) -> Rig:
    config = rollout_config(
        recycle=recycle,
        max_prompt_drops=max_drops,
        rollout_batch_size=target,
        over_sampling_batch_size=target + extra,
        n_samples_per_prompt=3,
    )
    return make_rig(config, Script(seed, longest), num_prompts=num_prompts)


async def run(rig: Rig, first: int, last: int) -> list[Rollout]:
    """Rollouts first to last - 1; the weights of each have its number as their version."""
    rollouts = []
    for rollout_id in range(first, last):
        rig.engines.version = rollout_id
        rollouts.append(await rig.sampler.rollout(rollout_id, rollout_id))
    return rollouts


def taken(rig: Rig) -> list[Key]:
    """Every prompt that ever left the data."""
    return [divmod(number, rig.prompts.num_prompts) for number in range(rig.prompts.taken)]


@settings(max_examples=60, deadline=None)
@given(recycle=st.sampled_from(["prompts", "tokens"]), max_drops=st.integers(0, 2), **SETTINGS)
def test_every_prompt_is_trained_rejected_given_up_or_queued_and_only_one_of_these(
    recycle: str, max_drops: int, **fields: int
) -> None:
    rig = make(recycle, max_drops=max_drops, **fields)
    rollouts = asyncio.run(run(rig, 0, 5))
    trained = [key_of(group.prompt) for rollout in rollouts for group in rollout.groups]
    given_up = [key_of(prompt) for rollout in rollouts for prompt in rollout.given_up]
    queued = [key_of(queued.prompt) for queued in rig.sampler.state().queue]
    named = Counter([*trained, *given_up, *queued])
    assert all(times == 1 for times in named.values())
    rejected = [key for key in taken(rig) if key not in named]
    # The filter rejects groups of equal rewards and no others; that is what may be missing.
    assert not any(rig.engines.script.is_good(*key) for key in rejected)
    assert len(rejected) == sum(sum(rollout.report.groups.rejected.values()) for rollout in rollouts)
    assert set(named) <= set(taken(rig))
    for rollout in rollouts:
        counts = rollout.report.groups
        assert counts.submitted == (
            counts.kept + sum(counts.rejected.values()) + counts.failed + counts.surplus + counts.aborted
        )
        assert counts.failed + counts.surplus + counts.aborted == counts.recycled + counts.given_up + counts.dropped


@settings(max_examples=60, deadline=None)
@given(recycle=st.sampled_from(["none", "prompts", "tokens"]), **SETTINGS)
def test_every_token_that_was_generated_is_trained_wasted_or_carried_on(recycle: str, **fields: int) -> None:
    rig = make(recycle, **fields)
    reports = [rollout.report for rollout in asyncio.run(run(rig, 0, 5))]
    begun = [draft for queued in rig.sampler.state().queue for draft in queued.begun if draft is not None]
    kept = sum(report.kept.tokens for report in reports)
    wasted = sum(report.wasted_tokens for report in reports)
    carried = sum(len(draft.generation.tokens) for draft in begun)
    assert sum(report.generated_tokens for report in reports) == kept + wasted + carried


@settings(max_examples=40, deadline=None)
@given(**SETTINGS)
def test_recycled_prompts_are_served_first_in_order(**fields: int) -> None:
    rig = make("prompts", **fields)
    asyncio.run(run(rig, 0, 1))
    queue = [key_of(queued.prompt) for queued in rig.sampler.state().queue]
    assert queue == sorted(queue)
    before = len(rig.engines.requests)
    asyncio.run(run(rig, 1, 2))
    wave = rig.config.wave_prompts
    first_wave = [tuple(int(t) - 1 for t in request.prompt) for request in rig.engines.requests[before::3][:wave]]
    assert first_wave[: len(queue)] == queue[:wave]


def test_a_prompt_is_given_up_after_its_responses_were_thrown_away_as_often_as_allowed() -> None:
    config = rollout_config(
        recycle="prompts",
        max_prompt_drops=2,
        n_samples_per_prompt=3,
        rollout_batch_size=2,
        over_sampling_batch_size=4,
    )
    rig = make_rig(config, Script(solvable=1.0))
    rig.engines.never = lambda epoch, index: index == 0
    rollouts = asyncio.run(run(rig, 0, 5))
    # Thrown away in rollouts 0, 1 and 2; twice it was queued again.
    assert [[prompt.index for prompt in rollout.given_up if prompt.index == 0] for rollout in rollouts] == [
        [],
        [],
        [0],
        [],
        [],
    ]
    tried = [request.request_id for request in rig.engines.requests if request.prompt[1] == 1]
    assert [name.partition("-")[0] for name in tried] == ["r0"] * 3 + ["r1"] * 3 + ["r2"] * 3


@settings(max_examples=40, deadline=None)
@given(at=st.integers(0, 3), recycle=st.sampled_from(["none", "prompts", "tokens"]), **SETTINGS)
def test_a_saved_state_goes_on_exactly(
    at: int, recycle: str, tmp_path_factory: pytest.TempPathFactory, **fields: int
) -> None:
    directory = tmp_path_factory.mktemp("state")
    whole = make(recycle, **fields)

    async def save_then_go_on() -> list[Rollout]:
        before = await run(whole, 0, at)
        whole.sampler.state().save(directory)
        return before + await run(whole, at, 4)

    expected = asyncio.run(save_then_go_on())[at:]
    resumed = make(recycle, **fields)
    resumed.sampler.load_state(SamplerState.load(directory))
    assert_same(asyncio.run(run(resumed, at, 4)), expected)


@settings(max_examples=30, deadline=None)
@given(ticks=st.integers(0, 12), recycle=st.sampled_from(["none", "prompts", "tokens"]), **SETTINGS)
def test_a_state_taken_in_the_middle_of_a_rollout_is_the_one_before_it(ticks: int, recycle: str, **fields: int) -> None:
    rig = make(recycle, **fields)

    async def look() -> tuple[SamplerState, list[Rollout]]:
        await run(rig, 0, 1)
        rig.engines.version = 1
        running = asyncio.create_task(rig.sampler.rollout(1, 1))
        for _ in range(10 * ticks):
            await asyncio.sleep(0)
        state = rig.sampler.state()
        return state, [await running]

    async def at_rest() -> tuple[SamplerState, list[Rollout]]:
        await run(calm, 0, 1)
        return calm.sampler.state(), await run(calm, 1, 2)

    calm = make(recycle, **fields)
    during, rollouts = asyncio.run(look())
    before, expected = asyncio.run(at_rest())
    assert_same(rollouts, expected)
    if during.next_group == before.next_group:
        resumed = make(recycle, **fields)
        resumed.sampler.load_state(during)
        assert_same(asyncio.run(run(resumed, 1, 2)), expected)
    else:
        assert during.next_group == rig.sampler.state().next_group


@settings(max_examples=40, deadline=None)
@given(turns=st.integers(1, 200), recycle=st.sampled_from(["none", "prompts"]), **SETTINGS)
def test_a_cancelled_rollout_never_happened(turns: int, recycle: str, **fields: int) -> None:
    rig, calm = make(recycle, **fields), make(recycle, **fields)

    async def cancel_then_go_on() -> list[Rollout]:
        running = asyncio.create_task(rig.sampler.rollout(0, 0))
        for _ in range(turns):
            await asyncio.sleep(0)
        if running.done():
            return [running.result(), *await run(rig, 1, 3)]
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert rig.engines.num_pending == 0
        return await run(rig, 0, 3)

    assert_same(asyncio.run(cancel_then_go_on()), asyncio.run(run(calm, 0, 3)), group_indices=False)


def test_a_cancelled_rollout_that_recycles_tokens_keeps_what_was_generated() -> None:
    rig = make("tokens", seed=3, target=4, extra=0, longest=12, num_prompts=50)
    rig.engines.never = lambda epoch, index: index == 3

    async def cancel() -> None:
        running = asyncio.create_task(rig.sampler.rollout(0, 0))
        while rig.engines.now < 4:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancel())
    queue = rig.sampler.state().queue
    script = rig.engines.script
    rejected = [index for index in range(3) if not script.is_good(0, index) and _ends(script, index) <= rig.engines.now]
    assert [queued.prompt.index for queued in queue] == [index for index in range(4) if index not in rejected]
    for queued in queue:
        for sample, draft in enumerate(queued.begun):
            length = script.length(*key_of(queued.prompt), sample)
            assert draft is not None
            assert len(draft.generation.tokens) == min(length, rig.engines.now)


@settings(max_examples=60, deadline=None)
@given(**SETTINGS)
def test_responses_that_go_on_equal_uninterrupted_ones_and_their_stale_tokens_are_masked(**fields: int) -> None:
    rig = make("tokens", **fields)
    for rollout in asyncio.run(run(rig, 0, 5)):
        stale = 0
        for group in rollout.groups:
            for place, sample in enumerate(group.samples):
                length = rig.engines.script.length(*key_of(group.prompt), place)
                response = sample.tokens[-sample.response_len :]
                assert (response == response_tokens(place, length)).all()
                assert sample.rollout_logprobs is not None
                assert (sample.rollout_logprobs == logprobs_of(response)).all()
                if sample.loss_mask is not None:
                    assert not sample.loss_mask.all()
                    # What is older comes first.
                    assert (numpy.diff(sample.loss_mask.astype(int)) >= 0).all()
                    stale += int((~sample.loss_mask).sum())
        assert stale == rollout.report.kept.stale_tokens
        assert any(sample.loss_mask is None or sample.loss_mask.any() for sample in rollout.samples)


def _ends(script: Script, index: int) -> int:
    return max(script.length(0, index, sample) for sample in range(3))


def partial_rig(**more: Any) -> Rig:
    """Prompt 0 has responses of 3, 6 and 9 tokens; prompt 1 ends after 6 ticks and is all that rollout 0 wants."""
    script = _Fixed(lengths={0: (3, 6, 9), 1: (6, 1, 1), 2: (9, 9, 9)})
    config = rollout_config(
        recycle="tokens",
        rollout_batch_size=1,
        over_sampling_batch_size=2,
        n_samples_per_prompt=3,
        rollout_max_response_len=8,
    )
    return make_rig(config, script, **more)


class _Fixed(Script):
    """Lengths written by hand; every prompt is worth training on."""

    def __init__(self, lengths: dict[int, tuple[int, ...]]) -> None:
        super().__init__(solvable=1.0)
        object.__setattr__(self, "lengths", lengths)

    def length(self, epoch: int, index: int, sample: int) -> int:
        lengths: dict[int, tuple[int, ...]] = self.__dict__["lengths"]
        return lengths.get(index, (20, 20, 20))[sample]


def test_a_partial_group_goes_on_with_the_tokens_that_are_left_of_its_limit() -> None:
    rig = partial_rig()
    first, second = asyncio.run(run(rig, 0, 2))
    assert [group.prompt.index for group in first.groups] == [1]
    # Six ticks: the first two responses of prompt 0 are whole, the third has 6 of its tokens.
    assert first.report.generated_tokens == 8 + 15
    assert first.report.wasted_tokens == 0
    assert [group.prompt.index for group in second.groups] == [0]
    went_on = [request for request in rig.engines.requests if request.request_id.startswith("r1-") and request.begun]
    assert [len(request.begun.tokens) for request in went_on if request.begun is not None] == [6]
    assert [request.tokens_left for request in went_on] == [2]
    samples = second.groups[0].samples
    assert [sample.response_len for sample in samples] == [3, 6, 8]
    assert [sample.finish_reason for sample in samples] == ["stop", "stop", "length"]
    assert [None if sample.loss_mask is None else sample.loss_mask.tolist() for sample in samples] == [
        [False] * 3,
        [False] * 6,
        [False] * 6 + [True] * 2,
    ]
    assert [sample.weight_version for sample in samples] == [0, 0, 1]
    assert second.report.kept.stale_tokens == 15


def test_stale_tokens_are_trained_on_when_that_is_asked_for() -> None:
    second = asyncio.run(run(partial_rig(train_stale_tokens=True), 0, 2))[1]
    assert [sample.loss_mask for sample in second.samples] == [None, None, None]
    assert second.report.kept.stale_tokens == 15


def test_a_response_at_its_limit_is_truncated_without_a_request() -> None:
    rig = partial_rig()
    asyncio.run(run(rig, 0, 1))
    record, arrays = rig.sampler.state().to_parts()
    shorter = make_rig(rig.config.model_copy(update={"rollout_max_response_len": 6}), rig.engines.script)
    shorter.sampler.load_state(SamplerState.from_parts(record, arrays))
    (rollout,) = asyncio.run(run(shorter, 1, 2))
    assert [group.prompt.index for group in rollout.groups] == [0]
    assert rollout.groups[0].samples[2].finish_reason == "length"
    assert not any(request.prompt[1] == 1 for request in shorter.engines.requests)


def test_responses_that_another_configuration_began_are_generated_again(caplog: pytest.LogCaptureFixture) -> None:
    rig = partial_rig()
    asyncio.run(run(rig, 0, 1))
    other = make_rig(rig.config.model_copy(update={"recycle": "prompts"}), rig.engines.script)
    other.sampler.load_state(rig.sampler.state())
    assert [(queued.prompt.index, queued.begun) for queued in other.sampler.state().queue] == [(0, ())]
    assert "are generated again: rollout.recycle is prompts" in caplog.text


def test_a_state_that_was_not_written_in_one_piece_is_refused(tmp_path: Path) -> None:
    rig = partial_rig()
    asyncio.run(run(rig, 0, 1))
    record, arrays = rig.sampler.state().to_parts()
    with pytest.raises(SamplerError, match=r"response_tokens has 14 values, but sampler\.json speaks of 15"):
        SamplerState.from_parts(record, arrays | {"response_tokens": arrays["response_tokens"][:-1]})
    with pytest.raises(SamplerError, match="this version reads format 1"):
        SamplerState.from_parts(record | {"format": 2}, arrays)
    with pytest.raises(SamplerError, match=r"sampler\.json"):
        SamplerState.load(tmp_path)


@pytest.mark.parametrize("killed_before", range(1, 4))
def test_a_save_that_is_killed_leaves_the_state_before_it(
    killed_before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = partial_rig()
    asyncio.run(run(rig, 0, 1))
    first = rig.sampler.state()
    first.save(tmp_path)
    other = [replace(queued, prompt=replace(queued.prompt, tokens=queued.prompt.tokens + 1)) for queued in first.queue]
    second = replace(first, queue=tuple(other))
    renames = killed_saving(second, tmp_path, monkeypatch, killed_before)
    # Two files are published; the third time nothing is, and the save has come to its end.
    expected = second if killed_before == 3 else first
    assert renames == min(killed_before, 2)
    assert parts(SamplerState.load(tmp_path)) == parts(expected)
    second.save(tmp_path)
    assert parts(SamplerState.load(tmp_path)) == parts(second)
    assert len(list(tmp_path.iterdir())) == 2


class Killed(BaseException):
    """Stands for the end of the process."""


def killed_saving(state: SamplerState, directory: Path, monkeypatch: pytest.MonkeyPatch, before: int) -> int:
    """Save, killed at the rename number `before`; returns how many renames were tried."""
    renames = 0
    rename = os.replace

    def rename_or_die(source: Path, target: Path) -> None:
        nonlocal renames
        renames += 1
        if renames == before:
            raise Killed
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", rename_or_die)
        with contextlib.suppress(Killed):
            state.save(directory)
    return renames


def parts(state: SamplerState) -> tuple[Any, dict[str, Any]]:
    record, arrays = state.to_parts()
    return record, {name: array.tolist() for name, array in arrays.items()}


def test_arrays_of_another_save_are_refused(tmp_path: Path) -> None:
    rig = partial_rig()
    asyncio.run(run(rig, 0, 1))
    state = rig.sampler.state()
    state.save(tmp_path)
    (arrays,) = tmp_path.glob("sampler-*.npz")
    with numpy.load(arrays) as stored:
        same_lengths = {name: stored[name] + 1 for name in stored.files}
    numpy.savez(arrays, **same_lengths)
    with pytest.raises(SamplerError, match=rf"was saved with {arrays.name}, whose content is that of sampler-\w+\.npz"):
        SamplerState.load(tmp_path)
    arrays.write_bytes(arrays.read_bytes()[:100])
    with pytest.raises(SamplerError, match="cannot be read: BadZipFile"):
        SamplerState.load(tmp_path)
    arrays.unlink()
    with pytest.raises(SamplerError, match="cannot be read: FileNotFoundError"):
        SamplerState.load(tmp_path)


def assert_same(rollouts: list[Rollout], expected: list[Rollout], *, group_indices: bool = True) -> None:
    assert len(rollouts) == len(expected)
    for one, other in zip(rollouts, expected, strict=True):
        assert [key_of(group.prompt) for group in one.groups] == [key_of(group.prompt) for group in other.groups]
        if group_indices:
            assert [group.index for group in one.groups] == [group.index for group in other.groups]
        assert list(map(content, one.samples)) == list(map(content, other.samples))
        assert one.report.groups == other.report.groups
        assert keys(one.given_up) == keys(other.given_up)


def keys(prompts: tuple[Prompt, ...]) -> list[Key]:
    return [key_of(prompt) for prompt in prompts]


def content(sample: Sample) -> tuple[Any, ...]:
    mask = None if sample.loss_mask is None else sample.loss_mask.tolist()
    assert sample.rollout_logprobs is not None
    return (
        sample.index,
        sample.tokens.tolist(),
        sample.rollout_logprobs.tolist(),
        sample.reward,
        mask,
        sample.finish_reason,
        sample.weight_version,
    )
