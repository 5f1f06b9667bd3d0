"""From the tokens of a response to its reward."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import isfinite
from typing import Protocol

import numpy
from numpy.typing import NDArray

from r1hpc.config.training import RolloutConfig
from r1hpc.rewards.request import RewardRequest, Score
from r1hpc.rollout.group import SamplerError
from r1hpc.types import Generation, Prompt

Decode = Callable[[NDArray[numpy.int32]], str]
"""Tokens of a response to its text."""

INLINE_TOKENS = 2048
"""Shorter responses are decoded in place, in about a millisecond; for longer ones the event loop would stand still."""


class Rewards(Protocol):
    """What the sampler needs of a RewardPool."""

    async def score(self, request: RewardRequest) -> Score:
        """The reward of one response."""

    async def score_group(self, requests: Sequence[RewardRequest]) -> Sequence[Score]:
        """The rewards of the responses to one prompt, taken together."""


class Grader:
    """Decodes responses and has them rewarded; counts how that ended."""

    def __init__(self, config: RolloutConfig, rewards: Rewards, decode: Decode) -> None:
        self._config = config
        self._rewards = rewards
        self._decode = decode
        # One thread: not every tokenizer may be used by several.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decode")
        self.outcomes: Counter[str] = Counter()
        """How gradings ended, since the last `clear`: graded, timeout, ..."""

    @property
    def by_group(self) -> bool:
        """Whether a group is rewarded as a whole, when all of its responses are there."""
        return self._config.group_rm

    async def grade(self, prompt: Prompt, generation: Generation) -> float:
        """The reward of one response."""
        score = await self._rewards.score(await self._request(prompt, generation))
        return self._value(score, prompt)

    async def grade_group(self, prompt: Prompt, generations: Sequence[Generation]) -> list[float]:
        """The rewards of a group."""
        requests = [await self._request(prompt, generation) for generation in generations]
        scores = await self._rewards.score_group(requests)
        if len(scores) != len(requests):
            raise SamplerError(f"{len(scores)} rewards for a group of {len(requests)} responses, {_name(prompt)}")
        return [self._value(score, prompt) for score in scores]

    async def _request(self, prompt: Prompt, generation: Generation) -> RewardRequest:
        kind = self._config.custom_rm_path or self._config.rm_type or prompt.metadata.get("rm_type")
        if kind is None:
            raise SamplerError(
                f"{_name(prompt)} has no reward: set rollout.rm_type or rollout.custom_rm_path, or give the line"
                " metadata with an rm_type"
            )
        text = await self._text(generation.tokens)
        return RewardRequest(response=text, label=prompt.label, kind=kind, metadata=prompt.metadata)

    async def _text(self, tokens: NDArray[numpy.int32]) -> str:
        if len(tokens) <= INLINE_TOKENS:
            return self._decode(tokens)
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._decode, tokens)

    def _value(self, score: Score, prompt: Prompt) -> float:
        self.outcomes[score.outcome] += 1
        if not isfinite(score.value):
            raise SamplerError(
                f"the reward of {_name(prompt)} is {score.value}; it must be finite: see the reward function"
            )
        return float(score.value)


def _name(prompt: Prompt) -> str:
    return f"prompt {prompt.index} (epoch {prompt.epoch})"
