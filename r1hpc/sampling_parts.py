"""What a rollout is made of on the driver's side: prompts, rewards, the sampler, the evaluator."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy
from numpy.typing import NDArray

from r1hpc.config import Config
from r1hpc.data.dataset import DataSettings, PromptDataset, load_dataset
from r1hpc.data.prompts import PromptSource
from r1hpc.data.template import PromptEncoder, load_tokenizer
from r1hpc.errors import ConfigError
from r1hpc.plan.model_shape import read_model_shape
from r1hpc.rewards.pool import RewardPool
from r1hpc.rewards.request import RewardLoadError
from r1hpc.rollout.dispatch import Dispatcher
from r1hpc.rollout.evaluation import Evaluator
from r1hpc.rollout.filters import GroupFilter
from r1hpc.rollout.group import SamplerError
from r1hpc.rollout.progress import ProgressCallback
from r1hpc.rollout.sampler import Sampler


@dataclass(frozen=True)
class Prompts:
    """Every prompt of the run, read and checked before anything slow begins."""

    encoder: PromptEncoder
    source: PromptSource
    eval_sets: dict[str, PromptDataset]
    vocab_size: int

    @classmethod
    def open(cls, config: Config, say: Callable[[str], None]) -> Prompts:
        """Raises DataError."""
        rollout = config.rollout
        encoder = PromptEncoder(load_tokenizer(config.ckpt.hf_checkpoint), rollout.apply_chat_template)
        dataset = load_dataset(DataSettings.of(rollout), encoder, say=say)
        sets = config.eval.eval_prompt_data if config.eval.eval_interval else {}
        return cls(
            encoder,
            PromptSource(dataset, shuffle=rollout.rollout_shuffle, seed=rollout.rollout_seed),
            {name: load_dataset(DataSettings.of(rollout, path), encoder, say=say) for name, path in sets.items()},
            read_model_shape(Path(config.ckpt.hf_checkpoint) / "config.json").vocab_size,
        )

    def decode(self, tokens: NDArray[numpy.int32]) -> str:
        """The text of a response, as the reference implementation hands it to rewards: special tokens included."""
        return self.encoder.show(tokens)


def reward_pool(config: Config) -> RewardPool:
    """Not started. A quarter of the head's cores may grade at once; its engines and trainers take the others."""
    kind = config.rollout.custom_rm_path or config.rollout.rm_type
    return RewardPool([kind] if kind else [], num_workers=min(16, max(1, (os.cpu_count() or 1) // 4)))


async def started_rewards(config: Config) -> RewardPool:
    """The reward pool, once reward and filter are known to load: call it before engines take their minutes.

    Raises ConfigError where one does not load, for trying again cannot help; but what the file system refuses may be
    there next time, and is the RewardError or SamplerError that it was.
    """
    rewards = reward_pool(config)
    try:
        GroupFilter.of(config.rollout)
        await rewards.start()
    except (RewardLoadError, SamplerError) as error:
        if isinstance(error.__cause__, OSError):
            raise
        raise ConfigError([str(error)]) from error
    return rewards


def make_sampler(
    config: Config, prompts: Prompts, dispatcher: Dispatcher, rewards: RewardPool, progress: ProgressCallback
) -> Sampler:
    """The sampler of training rollouts."""
    return Sampler(
        config.rollout,
        prompts.source,
        dispatcher,
        rewards,
        prompts.decode,
        GroupFilter.of(config.rollout),
        progress,
        train_stale_tokens=config.grpo.use_tis,
        vocab_size=prompts.vocab_size,
    )


def make_evaluator(config: Config, prompts: Prompts, dispatcher: Dispatcher, rewards: RewardPool) -> Evaluator | None:
    """The evaluator of the held-out sets; None where there are none."""
    if not prompts.eval_sets:
        return None
    sets = {name: dataset.prompts(numpy.arange(len(dataset)), epoch=0) for name, dataset in prompts.eval_sets.items()}
    return Evaluator(
        config.eval, config.rollout, sets, dispatcher, rewards, prompts.decode, vocab_size=prompts.vocab_size
    )
