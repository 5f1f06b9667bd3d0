"""A prompt that waits, the group of responses that it becomes, and what stops a rollout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from r1hpc.errors import R1hpcError
from r1hpc.types import Generation, Prompt, Sample


class SamplerError(R1hpcError):
    """A rollout that cannot go on: a filter, a reward or an engine gave what it must not."""


@dataclass(frozen=True)
class Draft:
    """One response of a group, whole or as far as it got, and its reward once it is graded."""

    generation: Generation
    reward: float | None = None


@dataclass(frozen=True)
class Queued:
    """A prompt that is to be sampled, again or for the first time."""

    prompt: Prompt
    times_dropped: int = 0
    """How often its responses were thrown away before."""
    begun: tuple[Draft | None, ...] = ()
    """Responses to go on with, one entry a sample of the group; () when there are none."""


@dataclass(frozen=True)
class Group:
    """The responses to one prompt, rewarded and kept."""

    index: int
    """Counts the groups that were ever submitted: groups of a rollout are in this order."""
    prompt: Prompt
    samples: tuple[Sample, ...]


def make_samples(
    group: int, prompt: Prompt, responses: Sequence[Draft], *, rollout_id: int, current: int | None
) -> tuple[Sample, ...]:
    """The samples of a group; their index is the place in the group until the rollout is put together.

    current: version whose tokens are trained on; tokens of every other version are masked. None trains on all.
    """
    return tuple(
        _make_sample(index, group, prompt, response, rollout_id, current) for index, response in enumerate(responses)
    )


def _make_sample(
    index: int, group: int, prompt: Prompt, response: Draft, rollout_id: int, current: int | None
) -> Sample:
    generation = response.generation
    assert response.reward is not None, f"group {group} sample {index} was never graded"
    return Sample(
        index=index,
        group_index=group,
        tokens=numpy.concatenate([prompt.tokens, generation.tokens]),
        response_len=len(generation.tokens),
        reward=response.reward,
        rollout_logprobs=generation.logprobs,
        loss_mask=None if current is None else _mask(generation, current),
        finish_reason=generation.finish_reason,
        weight_version=generation.versions[-1].version,
        rollout_id=rollout_id,
    )


def _mask(generation: Generation, current: int) -> NDArray[numpy.bool_] | None:
    """[R] True on the tokens of version `current`; None where that is all of them."""
    if all(span.version == current for span in generation.versions):
        return None
    mask = numpy.zeros(len(generation.tokens), dtype=numpy.bool_)
    for span in generation.versions:
        mask[span.begin : span.end] = span.version == current
    return mask
