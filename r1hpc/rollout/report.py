"""What a rollout was: the numbers that people look for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy

from r1hpc.rollout.attempt import Attempt
from r1hpc.rollout.group import Group
from r1hpc.rollout.oversampling import OverSampling


@dataclass(frozen=True)
class Timing:
    """Of one rollout, in seconds."""

    total: float
    """From the first request until every engine was still."""
    stop: float
    """Of these, from the last kept group on."""


@dataclass(frozen=True)
class GroupCounts:
    """Groups by what became of them: submitted = kept + rejected + failed + surplus + aborted."""

    waves: int
    submitted: int
    kept: int
    rejected: Mapping[str, int]
    """By the reason that the filter gave."""
    failed: int
    """An engine gave up on them."""
    surplus: int
    """Finished, but not needed."""
    aborted: int
    """Had not finished when enough were kept."""
    recycled: int
    """Of failed, surplus and aborted: queued for a later rollout."""
    given_up: int
    """Of these: too often thrown away to be queued again, or refused by an engine."""
    dropped: int
    """Of these: forgotten by `recycle: none`."""


@dataclass(frozen=True)
class SampleStatistics:
    """Of the kept samples."""

    truncated: float
    """Share that ran into the length limit."""
    tokens: int
    """Of their responses; some may have been generated in an earlier rollout."""
    stale_tokens: int
    """Of these, by weights of another version."""
    response_len_mean: float
    response_len_max: int
    reward_mean: float
    """A filter moves it towards the middle."""

    @classmethod
    def of(cls, groups: Sequence[Group], stale_tokens: int) -> SampleStatistics:
        """Statistics of at least one group."""
        samples = [sample for group in groups for sample in group.samples]
        lengths = numpy.asarray([sample.response_len for sample in samples])
        return cls(
            truncated=sum(sample.finish_reason == "length" for sample in samples) / len(samples),
            tokens=int(lengths.sum()),
            stale_tokens=stale_tokens,
            response_len_mean=float(lengths.mean()),
            response_len_max=int(lengths.max()),
            reward_mean=float(numpy.mean([sample.reward for sample in samples])),
        )


@dataclass(frozen=True)
class RolloutReport:
    """One rollout in numbers."""

    rollout_id: int
    weight_version: int
    timing: Timing
    groups: GroupCounts
    kept: SampleStatistics
    queued: int
    """Prompts that wait for the next rollout."""
    generated_tokens: int
    """By the engines in this rollout."""
    wasted_tokens: int
    """Of the responses that were thrown away in this rollout: of rejected, failed, surplus and aborted groups, and of
    groups of an earlier rollout that are too old."""
    reward_mean_finished: float
    """Of all groups that were judged, kept or not: what the policy scores."""
    reward_outcomes: Mapping[str, int]
    """How gradings ended: graded, timeout, memory, error, ..."""
    not_stopped: str | None = None
    """What is said of engines that still ran requests at the deadline: restart them before their memory is taken."""

    @property
    def tokens_per_s(self) -> float:
        """Generated, over the whole rollout."""
        return self.generated_tokens / max(self.timing.total, 1e-9)

    def line(self) -> str:
        """One line for the log."""
        groups, kept = self.groups, self.kept
        rejected = "".join(f", {times} {reason}" for reason, times in sorted(groups.rejected.items()))
        return (
            f"rollout {self.rollout_id}: {groups.kept} groups kept of {groups.submitted} in {groups.waves} waves"
            f" ({sum(groups.rejected.values())} rejected{rejected}; {groups.failed} failed, {groups.surplus} surplus,"
            f" {groups.aborted} aborted; {groups.recycled} recycled, {groups.given_up} given up,"
            f" {groups.dropped} dropped); reward {kept.reward_mean:.3f} ({self.reward_mean_finished:.3f} of all);"
            f" length {kept.response_len_mean:,.0f}, longest {kept.response_len_max:,}, {kept.truncated:.1%} truncated;"
            f" {self.tokens_per_s:,.0f} tokens/s, {self.wasted_tokens:,} of {self.generated_tokens:,} tokens wasted;"
            f" {self.timing.total:.1f} s, {self.timing.stop:.1f} of them to stop"
        )


def count_groups(loop: OverSampling, *, recycled: int, given_up: int) -> GroupCounts:
    """The counts of a rollout that has ended."""
    surplus = len(loop.surplus) + sum(attempt.whole() is not None for attempt in loop.running.values())
    aborted = len(loop.running) + len(loop.surplus) - surplus
    return GroupCounts(
        waves=loop.waves,
        submitted=loop.submitted,
        kept=len(loop.kept),
        rejected=dict(loop.reasons),
        failed=len(loop.failed),
        surplus=surplus,
        aborted=aborted,
        recycled=recycled,
        given_up=given_up,
        dropped=len(loop.failed) + surplus + aborted - recycled - given_up,
    )


def stale_tokens(attempts: Iterable[Attempt], weight_version: int) -> int:
    """Tokens of their responses that weights of another version generated."""
    return sum(
        span.end - span.begin
        for attempt in attempts
        for draft in attempt.drafts
        if draft is not None
        for span in draft.generation.versions
        if span.version != weight_version
    )


@dataclass
class Mean:
    """A running mean."""

    total: float = 0.0
    count: int = 0

    def add(self, value: float) -> None:
        """Take one value in."""
        self.total += value
        self.count += 1

    @property
    def value(self) -> float:
        """0.0 of nothing."""
        return self.total / self.count if self.count else 0.0
