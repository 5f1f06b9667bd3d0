"""What happens while a run runs: how weights reach the engines, and what is recorded or replayed to find faults."""

from __future__ import annotations

from r1hpc.config.base import Section
from r1hpc.config.quantities import PositiveInt


class SyncConfig(Section):
    """The way of the weights from the trainer into the engines."""

    quantize: bool = True
    """Send weights in the block fp8 that the quantization_config of `ckpt.hf_checkpoint` says, if it says any; false
    sends the trainer's own precision, for engines that were started from a checkpoint without fp8."""
    bucket_mib: PositiveInt = 512
    """Largest payload that a GPU gets at once, MiB; two of them exist at a time."""
    full_check_interval: PositiveInt | None = None
    """Rollouts between two comparisons of every weight of the engines; null compares samples only, each time."""
    timeout_s: PositiveInt = 600
    """Seconds in which an engine must have all weights; past them it is restarted."""


class DebugConfig(Section):
    """Finding faults: parts of a run by themselves."""

    save_rollouts: bool = False
    """Keep every rollout in `rollouts` of the run directory, to be replayed."""
    replay_rollouts: str | None = None
    """Directory of rollouts that were saved: they are trained on, and no engine is started."""
    rollout_only: bool = False
    """Sample every rollout with the weights of the start, and never train."""
