"""Samples made up for tests of the trainer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from hypothesis import strategies as st

from r1hpc.types import Sample

VOCAB_SIZE = 1000


def make_sample(
    index: int,
    prompt_len: int,
    response_len: int,
    *,
    logprobs: bool = True,
    loss_mask: Sequence[bool] | None = None,
    reward: float = 1.0,
) -> Sample:
    """A sample whose tokens and log-probs are random and depend on its index alone; no token is 0."""
    random = numpy.random.default_rng(index)
    return Sample(
        index=index,
        group_index=index // 2,
        tokens=random.integers(1, VOCAB_SIZE, prompt_len + response_len, dtype=numpy.int32),
        response_len=response_len,
        reward=reward,
        rollout_logprobs=-random.random(response_len, dtype=numpy.float32) if logprobs else None,
        loss_mask=None if loss_mask is None else numpy.asarray(loss_mask, dtype=numpy.bool_),
    )


@st.composite
def rollouts(draw: st.DrawFn, most: int = 5, longest: int = 40) -> list[Sample]:
    """Samples that may be trained on, with log-probs or without, some masked in part or whole."""
    logprobs = draw(st.booleans())
    samples = []
    for index in range(draw(st.integers(1, most))):
        response_len = draw(st.integers(1, longest))
        masks = st.none() | st.lists(st.booleans(), min_size=response_len, max_size=response_len)
        samples.append(
            make_sample(index, draw(st.integers(1, longest)), response_len, logprobs=logprobs, loss_mask=draw(masks))
        )
    return samples
