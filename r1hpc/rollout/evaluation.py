"""Held-out sets, sampled and graded like a rollout but never trained on: mean reward, pass@k, truncation."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import prod

import numpy

from r1hpc.config.training import EvalConfig, RolloutConfig
from r1hpc.errors import R1hpcError
from r1hpc.rollout.attempt import Attempt, Engines, Floor
from r1hpc.rollout.grading import Decode, Grader, Rewards
from r1hpc.rollout.group import Queued
from r1hpc.rollout.sampling import SamplingParams
from r1hpc.types import Prompt

logger = logging.getLogger(__name__)

PASSED = 0.5
"""A reward above this counts as a pass in pass@k: 1 of 0/1 rewards, 1 of -1/1 rewards."""


@dataclass(frozen=True)
class EvalResult:
    """One set, evaluated once."""

    name: str
    weight_version: int
    num_prompts: int
    samples_per_prompt: int
    reward_mean: float
    """Over the samples of all groups that were answered."""
    pass_at: Mapping[int, float]
    """k -> share of prompts that k samples solve, for k = 1, 2, 4, ... and samples_per_prompt."""
    truncated: float
    """Share of the samples that ran into the length limit."""
    response_len_mean: float
    response_len_max: int
    failed: tuple[str, ...]
    """Prompts that an engine gave up on, with the reason; they count in none of the numbers above."""
    seconds: float


def eval_params(config: EvalConfig, rollout: RolloutConfig) -> SamplingParams:
    """The sampling of evaluations: their own where it is set (0 is greedy), else the rollout's."""
    return SamplingParams(
        temperature=rollout.rollout_temperature if config.eval_temperature is None else config.eval_temperature,
        top_p=rollout.rollout_top_p if config.eval_top_p is None else config.eval_top_p,
        top_k=rollout.rollout_top_k,
        max_new_tokens=config.eval_max_response_len or rollout.rollout_max_response_len,
    )


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Unbiased estimate that at least one of k samples passes: 1 - C(n - c, k) / C(n, k).

    arXiv:2107.03374 section 2.1, as a product, which stays exact for large n. Needs 1 <= k <= n.
    """
    if num_samples - num_passed < k:
        return 1.0
    return 1.0 - prod(1.0 - k / i for i in range(num_samples - num_passed + 1, num_samples + 1))


class Evaluator:
    """Evaluates all sets with engines that serve one version of the weights, between rollouts."""

    def __init__(
        self,
        config: EvalConfig,
        rollout: RolloutConfig,
        sets: Mapping[str, Sequence[Prompt]],
        engines: Engines,
        rewards: Rewards,
        decode: Decode,
        *,
        stop_s: float = 60.0,
        vocab_size: int | None = None,
    ) -> None:
        """vocab_size: of the model's config.json, which every prompt is checked against; None checks nothing."""
        self._samples = config.n_samples_per_eval_prompt
        self._params = eval_params(config, rollout)
        self._sets = sets
        self._engines = engines
        self._grader = Grader(rollout, rewards, decode)
        self._stop_s = stop_s
        self._vocab_size = vocab_size

    async def evaluate(self, rollout_id: int, weight_version: int) -> list[EvalResult]:
        """One result a set, in their order. Starts the engines, and stops them however it ends."""
        floor = Floor(
            self._engines,
            self._grader,
            self._params,
            rollout_id,
            weight_version,
            vocab_size=self._vocab_size,
            name="eval",
        )
        indices = count()
        self._engines.start()
        try:
            # One set after another: the seconds of each are its own.
            return [await self._evaluate(name, prompts, floor, indices) for name, prompts in self._sets.items()]
        finally:
            floor.is_stopping = True
            await self._stop()

    async def _stop(self) -> None:
        """Leave the engines unwatched too: their memory may be released next, and they would seem to hang."""
        try:
            await self._engines.stop(self._stop_s)
        except R1hpcError as error:
            # What was found stands, and so does an error that is on its way.
            logger.error("after the evaluation: %s", error)

    async def _evaluate(self, name: str, prompts: Sequence[Prompt], floor: Floor, indices: count[int]) -> EvalResult:
        began = time.monotonic()
        attempts = [Attempt(next(indices), Queued(prompt), self._samples) for prompt in prompts]
        try:
            async with asyncio.TaskGroup() as tasks:
                for attempt in attempts:
                    tasks.create_task(attempt.run(floor))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return _result(name, attempts, floor.weight_version, self._samples, time.monotonic() - began)


def _result(
    name: str, attempts: Sequence[Attempt], weight_version: int, num_samples: int, seconds: float
) -> EvalResult:
    groups = [whole for attempt in attempts if (whole := attempt.whole()) is not None]
    rewards = numpy.asarray([[draft.reward for draft in group] for group in groups], dtype=numpy.float64)
    generations = [draft.generation for group in groups for draft in group]
    lengths = [len(generation.tokens) for generation in generations] or [0]
    passes = [int((group > PASSED).sum()) for group in rewards]
    return EvalResult(
        name=name,
        weight_version=weight_version,
        num_prompts=len(attempts),
        samples_per_prompt=num_samples,
        reward_mean=float(rewards.mean()) if groups else 0.0,
        pass_at={
            k: float(numpy.mean([pass_at_k(num_samples, passed, k) for passed in passes])) if groups else 0.0
            for k in _ks(num_samples)
        },
        truncated=sum(generation.finish_reason == "length" for generation in generations) / max(len(generations), 1),
        response_len_mean=float(numpy.mean(lengths)),
        response_len_max=max(lengths),
        failed=tuple(
            f"prompt {attempt.prompt.index}: {attempt.failure}" for attempt in attempts if attempt.failure is not None
        ),
        seconds=seconds,
    )


def _ks(num_samples: int) -> list[int]:
    """1, 2, 4, ... and the number of samples itself."""
    powers = [1 << exponent for exponent in range(num_samples.bit_length())]
    return sorted({k for k in powers if k <= num_samples} | {num_samples})
