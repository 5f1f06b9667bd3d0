"""Rollouts to train on: random tokens of odd lengths, rewards that differ within a group, log-probs near the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy

from r1hpc.types import Sample

GROUP_SIZE = 4


def make_samples(
    count: int, vocab_size: int, *, seed: int = 0, shortest: int = 5, longest: int = 37, masked: bool = False
) -> list[Sample]:
    """`count` samples in groups of four. masked: a third of the response of every other sample is not trained on."""
    drawn = numpy.random.default_rng(seed)
    samples = []
    for index in range(count):
        length = int(drawn.integers(shortest, longest + 1))
        response = int(drawn.integers(1, length))
        mask = drawn.random(response) > 1 / 3 if masked and index % 2 else None
        samples.append(
            Sample(
                index=index,
                group_index=index // GROUP_SIZE,
                tokens=drawn.integers(0, vocab_size, length).astype(numpy.int32),
                response_len=response,
                reward=float(drawn.integers(0, 2)) + 0.25 * (index % GROUP_SIZE),
                rollout_logprobs=-drawn.uniform(4.0, 7.0, response).astype(numpy.float32),
                loss_mask=mask,
            )
        )
    return samples


def in_groups(samples: Sequence[Sample]) -> list[Sample]:
    """The samples numbered anew."""
    return [replace(sample, index=index, group_index=index // GROUP_SIZE) for index, sample in enumerate(samples)]
