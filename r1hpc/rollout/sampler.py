"""Rollouts: prompts in, `rollout_batch_size` rewarded groups out, and an account of everything that was generated."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import count

from r1hpc.config.training import RolloutConfig
from r1hpc.rollout.attempt import Attempt, Engines, Floor
from r1hpc.rollout.filters import GroupFilter, Verdict
from r1hpc.rollout.grading import Decode, Grader, Rewards
from r1hpc.rollout.group import Group, Queued, SamplerError
from r1hpc.rollout.oversampling import Limits, OverSampling
from r1hpc.rollout.progress import ProgressCallback
from r1hpc.rollout.recycle import PromptQueue, Prompts
from r1hpc.rollout.report import Mean, RolloutReport, SampleStatistics, Timing, count_groups, stale_tokens
from r1hpc.rollout.sampling import SamplingParams
from r1hpc.rollout.showing import showing
from r1hpc.rollout.state import SamplerState
from r1hpc.types import Prompt, Sample

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rollout:
    """What the trainer gets."""

    groups: list[Group]
    """In order of their index, rollout_batch_size of them."""
    report: RolloutReport
    given_up: tuple[Prompt, ...] = ()
    """Prompts that will not be sampled again in their epoch."""

    @property
    def samples(self) -> list[Sample]:
        """All samples, `index` counting from 0."""
        return [sample for group in self.groups for sample in group.samples]


class Sampler:
    """Makes rollouts, one at a time. What it carries from one to the next is its `state`."""

    def __init__(
        self,
        config: RolloutConfig,
        prompts: Prompts,
        engines: Engines,
        rewards: Rewards,
        decode: Decode,
        group_filter: GroupFilter | None = None,
        progress: ProgressCallback | None = None,
        *,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        train_stale_tokens: bool = False,
        vocab_size: int | None = None,
    ) -> None:
        """vocab_size: of the model's config.json; a prompt with another token id ends the rollout before an engine,
        which would die of it, gets it. None checks nothing.

        train_stale_tokens: train on tokens of older weights too, which only `recycle: tokens` has.

        They are masked unless something corrects for them: the log-probs before an update come from the new weights, so
        the ratio of a stale token says nothing of how it was sampled. Truncated importance sampling (grpo.use_tis)
        corrects that, and then they may be trained on.
        """
        self._config = config
        self._engines = engines
        self._grader = Grader(config, rewards, decode)
        self._filter = group_filter
        self._progress = progress
        self._limits = limits
        self._train_stale = train_stale_tokens
        self._vocab_size = vocab_size
        self._queue = PromptQueue(prompts, config.recycle, max_drops=config.max_prompt_drops)
        self._next_group = 0
        self._before: SamplerState | None = None

    def state(self) -> SamplerState:
        """What the next rollout depends on. While one runs, the state before it: it counts when it is whole."""
        if self._before is not None:
            return self._before
        return SamplerState(self._queue.cursor(), self._next_group, self._queue.waiting)

    def load_state(self, state: SamplerState) -> None:
        """Go on from a state; begun responses that this configuration cannot go on with are generated again."""
        if self._before is not None:
            raise SamplerError("a rollout is running: a state is loaded between rollouts")
        self._queue.restore(map(self._usable, state.queue), state.cursor)
        self._next_group = state.next_group

    async def rollout(self, rollout_id: int, weight_version: int) -> Rollout:
        """Sample the groups of one rollout, with engines that serve weights of this version.

        If it raises, or is cancelled, the engines are stopped and the sampler is as it was before: no prompt is lost.
        With `recycle: tokens` a cancelled rollout keeps what was generated.
        """
        if self._before is not None:
            raise SamplerError(f"rollout {rollout_id}: another one is running")
        self._before = self.state()
        try:
            return await self._rollout(rollout_id, weight_version)
        finally:
            self._before = None

    async def _rollout(self, rollout_id: int, weight_version: int) -> Rollout:
        self._grader.outcomes.clear()
        floor = Floor(
            self._engines, self._grader, self._params(), rollout_id, weight_version, vocab_size=self._vocab_size
        )
        scores = Mean()
        loop = OverSampling(
            floor,
            self._config.rollout_batch_size,
            self._limits,
            next_wave=lambda: self._next_wave(floor),
            judge=lambda attempt: self._judge(attempt, floor, scores),
        )
        began = time.monotonic()
        # Not ours to stop where this raises: somebody else uses them.
        self._engines.start()
        try:
            async with showing(loop, self._progress):
                await loop.collect()
                collected = time.monotonic()
                await loop.stop()
        except BaseException as error:
            await self._undo(loop, keep=isinstance(error, asyncio.CancelledError))
            raise
        ended = time.monotonic()
        timing = Timing(ended - began, ended - collected)
        return self._put_together(loop, floor, timing, scores)

    def _params(self) -> SamplingParams:
        config = self._config
        return SamplingParams(
            temperature=config.rollout_temperature,
            top_p=config.rollout_top_p,
            top_k=config.rollout_top_k,
            max_new_tokens=config.rollout_max_response_len,
        )

    def _next_wave(self, floor: Floor) -> list[Attempt]:
        wave = []
        for queued in self._queue.take(self._config.wave_prompts):
            if not self._train_stale and _is_stale(queued, floor.weight_version):
                floor.dropped_tokens += sum(len(draft.generation.tokens) for draft in queued.begun if draft)
                queued = replace(queued, begun=(), times_dropped=queued.times_dropped + 1)
            wave.append(Attempt(self._next_group, queued, self._config.n_samples_per_prompt))
            self._next_group += 1
        return wave

    def _judge(self, attempt: Attempt, floor: Floor, scores: Mean) -> Verdict:
        samples = attempt.finish(floor.rollout_id, None if self._train_stale else floor.weight_version)
        for sample in samples:
            scores.add(sample.reward)
        return Verdict(True) if self._filter is None else self._filter(samples)

    async def _undo(self, loop: OverSampling, *, keep: bool) -> None:
        """Stop everything and queue all prompts again; keep: with what was generated, where tokens are recycled."""
        before = self.state()
        try:
            await loop.stop()
        finally:
            if keep and self._config.recycle == "tokens":
                groups = [*loop.kept, *loop.surplus, *loop.failed, *loop.running.values()]
                self._queue.put_first([self._left(group) for group in sorted(groups, key=_index)])
            else:
                self._queue.restore(before.queue, before.cursor)

    def _left(self, attempt: Attempt) -> Queued:
        """What goes back to the queue of a group that is not trained on."""
        keeps = self._config.recycle == "tokens" and attempt.failure is None and any(attempt.drafts)
        return replace(attempt.queued, begun=tuple(attempt.drafts) if keeps else ())

    def _usable(self, queued: Queued) -> Queued:
        """Without responses that this configuration cannot go on with."""
        samples = self._config.n_samples_per_prompt
        if not queued.begun or (self._config.recycle == "tokens" and len(queued.begun) == samples):
            return queued
        logger.warning(
            "the %d begun responses to prompt %d are generated again: rollout.recycle is %s, n_samples_per_prompt %d",
            len(queued.begun),
            queued.prompt.index,
            self._config.recycle,
            samples,
        )
        return replace(queued, begun=())

    def _put_together(self, loop: OverSampling, floor: Floor, timing: Timing, scores: Mean) -> Rollout:
        groups = _numbered(sorted(loop.kept, key=_index))
        left = sorted([*loop.failed, *loop.surplus, *loop.running.values()], key=_index)
        refused = [attempt.queued for attempt in left if attempt.is_refused]
        again = [self._left(attempt) for attempt in left if not attempt.is_refused]
        out = self._queue.give_back(again)
        forgets = self._config.recycle == "none"
        given_up = refused if forgets else refused + out
        if given_up:
            logger.warning(
                "rollout %d: %d prompts are given up: %s",
                floor.rollout_id,
                len(given_up),
                ", ".join(f"{queued.prompt.index} (epoch {queued.prompt.epoch})" for queued in given_up),
            )
        not_carried = sum(attempt.num_tokens for attempt in left if not self._left(attempt).begun)
        wasted = loop.rejected_tokens + not_carried + floor.dropped_tokens
        report = RolloutReport(
            rollout_id=floor.rollout_id,
            weight_version=floor.weight_version,
            timing=timing,
            groups=count_groups(loop, recycled=len(again) - len(out), given_up=len(given_up)),
            queued=len(self._queue.waiting),
            generated_tokens=loop.generated_tokens,
            wasted_tokens=wasted,
            kept=SampleStatistics.of(groups, stale_tokens(loop.kept, floor.weight_version)),
            reward_mean_finished=scores.value,
            reward_outcomes=dict(self._grader.outcomes),
            not_stopped=loop.not_stopped,
        )
        logger.info("%s", report.line())
        return Rollout(groups, report, tuple(queued.prompt for queued in given_up))


def _index(attempt: Attempt) -> int:
    return attempt.index


def _is_stale(queued: Queued, weight_version: int) -> bool:
    """Whether a group is all there, and weights of other versions generated it: no token of it would be trained on."""
    return bool(queued.begun) and all(
        draft is not None
        and draft.generation.finish_reason != "abort"
        and all(span.version != weight_version for span in draft.generation.versions)
        for draft in queued.begun
    )


def _numbered(attempts: Iterable[Attempt]) -> list[Group]:
    """The groups of a rollout; their samples are numbered through."""
    numbers = count()
    return [
        Group(
            attempt.index,
            attempt.prompt,
            tuple(replace(sample, index=next(numbers)) for sample in attempt.samples),
        )
        for attempt in attempts
    ]
