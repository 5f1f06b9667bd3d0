"""What a trainer needs of a run's configuration, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from r1hpc.config.schema import Config
from r1hpc.config.training import GrpoConfig, OptimizerConfig, PerfConfig
from r1hpc.model.settings import TrainSettings
from r1hpc.plan.assumptions import assumptions_for
from r1hpc.plan.batches import steps_per_rollout
from r1hpc.plan.gpu_memory import groups_rebuilt
from r1hpc.plan.model_shape import ModelShape


@dataclass(frozen=True)
class TrainerConfig:
    """The sections and values that decide what one trainer computes."""

    hugging_face: Mapping[str, Any]
    """The model's config.json."""
    shape: ModelShape
    """The same, checked."""
    perf: PerfConfig
    grpo: GrpoConfig
    optimizer: OptimizerConfig
    model: TrainSettings
    temperature: float
    """Of the rollout: it divides all logits."""
    samples_per_step: int
    steps_per_rollout: int
    num_rollout: int
    balance_data: bool
    seed: int
    rebuild_groups: bool = False
    """Process groups are destroyed in sleep and made again."""

    @classmethod
    def of(cls, config: Config, hugging_face: Mapping[str, Any], shape: ModelShape) -> TrainerConfig:
        """Of a run, and the model that it trains."""
        steps = steps_per_rollout(config)
        return cls(
            hugging_face=hugging_face,
            shape=shape,
            perf=config.perf,
            grpo=config.grpo,
            optimizer=config.optimizer,
            model=TrainSettings.of(config.perf, config.megatron, config.hosts.device),
            temperature=config.rollout.rollout_temperature,
            samples_per_step=config.rollout.samples_per_rollout // steps,
            steps_per_rollout=steps,
            num_rollout=config.rollout.num_rollout,
            balance_data=config.rollout.balance_data,
            seed=config.run.seed,
            rebuild_groups=groups_rebuilt(config, assumptions_for(config.hosts.device)),
        )

    @property
    def digest(self) -> str:
        """xxh3 of what decides the numbers of training but the layout: a checkpoint tells by it of a change."""
        sections = [section.model_dump(mode="json") for section in (self.grpo, self.optimizer)]
        values = [*sections, dict(self.hugging_face), str(self.model.dtype), self.temperature, self.samples_per_rollout]
        return xxhash.xxh3_64_hexdigest(
            json.dumps([*values, self.steps_per_rollout, self.seed], sort_keys=True).encode()
        )

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.num_rollout * self.steps_per_rollout

    @property
    def samples_per_rollout(self) -> int:
        """Samples that an update takes."""
        return self.samples_per_step * self.steps_per_rollout

    @property
    def needs_reference(self) -> bool:
        """Whether the reference's log-probs are computed: a KL in the loss or the reward, be it as a metric only."""
        return self.grpo.use_kl_loss or self.grpo.kl_coef != 0

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether a pass before the first step is needed; with one step its own log-probs are the old ones."""
        grpo = self.grpo
        if grpo.use_rollout_logprobs and not grpo.use_tis:
            return False
        return self.steps_per_rollout > 1 or grpo.use_tis or grpo.kl_coef != 0
