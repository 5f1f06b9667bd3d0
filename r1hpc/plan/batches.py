"""Samples, steps and prompts of a rollout, and the token capacity of a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from r1hpc.config import Config


@dataclass(frozen=True)
class Batches:
    """What one rollout is, and what all of them add up to."""

    prompts: int
    """Prompts kept per rollout."""
    samples: int
    """Samples trained per rollout."""
    steps: int
    """Optimizer steps per rollout."""
    samples_per_step: int
    """The global batch size."""
    rollouts: int
    total_steps: int
    prompts_fetched: int
    """Prompts taken from the data set per rollout at least: one wave of over-sampling."""
    prompts_returned: bool
    """Whether surplus prompts are queued again: then a rollout uses up `prompts` and those that the filter rejects."""
    rollouts_per_epoch: float | None
    """With whole waves used up; null while the size of the data set is unknown."""
    epochs: float | None
    concurrency: int
    """Requests that the client keeps in flight over all engines."""
    wave_requests: int
    """Requests of one wave of prompts."""
    longest_sample: int
    """Tokens: the longest response, and the longest prompt where one is set."""
    micro_batch_tokens: int
    """Raw tokens that the context-parallel ranks of a micro-batch share."""
    tokens_per_gpu: int
    """Tokens of a micro-batch on one context-parallel rank at most: a longer sample gets a micro-batch of its own."""


def steps_per_rollout(config: Config) -> int:
    """Optimizer steps of a rollout: as given, or as the global batch size implies; 1 when neither is."""
    rollout = config.rollout
    if rollout.num_steps_per_rollout is not None:
        return rollout.num_steps_per_rollout
    if rollout.global_batch_size is not None:
        return rollout.samples_per_rollout // rollout.global_batch_size
    return 1


def make_batches(config: Config, num_engines: int, num_prompts: int | None) -> Batches:
    """The batches of a run whose numbers divide (`problems.batch_problems`)."""
    rollout, perf = config.rollout, config.perf
    steps = steps_per_rollout(config)
    longest = rollout.rollout_max_response_len + (rollout.rollout_max_prompt_len or 0)
    alone = ceil(longest / perf.context_parallel_size)
    capped = perf.max_tokens_per_gpu if perf.use_dynamic_batch_size and perf.max_tokens_per_gpu else alone
    per_epoch = None if num_prompts is None else num_prompts / rollout.wave_prompts
    return Batches(
        prompts=rollout.rollout_batch_size,
        samples=rollout.samples_per_rollout,
        steps=steps,
        samples_per_step=rollout.samples_per_rollout // steps,
        rollouts=rollout.num_rollout,
        total_steps=rollout.num_rollout * steps,
        prompts_fetched=rollout.wave_prompts,
        prompts_returned=rollout.recycle != "none",
        rollouts_per_epoch=per_epoch,
        epochs=None if per_epoch is None else rollout.num_rollout / per_epoch,
        concurrency=config.sglang.server_concurrency * num_engines,
        wave_requests=rollout.wave_prompts * rollout.n_samples_per_prompt,
        longest_sample=longest,
        micro_batch_tokens=capped * perf.context_parallel_size,
        tokens_per_gpu=max(capped, alone),
    )
