"""Where an attempt begins: the newest commit of this run, what `load` says, or the reference."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r1hpc.actors.trainers import TrainerGroup
from r1hpc.checkpoint.commits.names import COMMITTED
from r1hpc.checkpoint.commits.record import judge
from r1hpc.config import Config
from r1hpc.rollout.recorded import Rollouts
from r1hpc.rollout.state import SamplerState
from r1hpc.saving import SAMPLER
from r1hpc.train.checkpoint.start import Start

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """What the attempt begins with."""

    iteration: int
    record: Mapping[str, Any]
    """Of the commit; empty at a start."""


async def restore(start: Start, config: Config, trainers: TrainerGroup, rollouts: Rollouts) -> Restored:
    """Load the weights, and for a commit all else of it. Raises CheckpointError, TrainerError or SamplerError."""
    logger.info("%s", start.reason)
    if config.grpo.use_kl_loss or config.grpo.kl_coef:
        reference = config.ckpt.ref_load
        assert reference is not None, "the configuration's rules ask for ref_load where a reference is needed"
        await trainers.load_reference(Path(reference))
    if not start.resumes:
        await trainers.load(start.directory)
        return Restored(start.rollout, {})
    await trainers.resume(start.directory)
    if not (start.directory / COMMITTED).exists():
        logger.warning("%s is a trainer's checkpoint and no commit: the prompts begin anew", start.directory)
        return Restored(start.rollout, {})
    rollouts.load_state(SamplerState.load(start.directory / SAMPLER))
    return Restored(start.rollout, judge(start.directory).record)
