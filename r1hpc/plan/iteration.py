"""How long one iteration may take: a range from published speeds, until run.expected_rollout_minutes replaces it."""

from __future__ import annotations

from dataclasses import dataclass

from r1hpc.config import Config
from r1hpc.plan.assumptions import Assumptions
from r1hpc.plan.batches import Batches
from r1hpc.plan.host_adam import HostAdamStep
from r1hpc.plan.host_memory import has_reference
from r1hpc.plan.model_shape import ModelShape
from r1hpc.plan.parameters import model_modules

MEAN_LENGTH_SHARE = 1 / 3
"""Mean sample over longest sample: 10k of 32k tokens, as R1-like runs report."""


@dataclass(frozen=True)
class IterationTime:
    """Minutes of one iteration, rollout and update."""

    low_minutes: float
    high_minutes: float
    measured: bool
    """Whether run.expected_rollout_minutes gave it."""


def iteration_time(
    config: Config,
    shape: ModelShape,
    batches: Batches,
    world_size: int,
    adam: HostAdamStep | None,
    device: Assumptions,
) -> IterationTime | None:
    """Minutes of an iteration: as configured, else estimated; null where nothing is known (a CPU rehearsal).

    The slowest sample runs to its limit at 25 to 60 tokens/s; then the update at the assumed share of peak,
    and host Adam after each of its steps.
    """
    if config.run.expected_rollout_minutes:
        expected = config.run.expected_rollout_minutes
        return IterationTime(expected, expected, measured=True)
    if device.peak_flops is None:
        return None
    update = update_flops(config, shape, batches) / (world_size * device.peak_flops * device.model_flops_share)
    slow, fast = device.decode_tokens_per_s
    fast_adam, slow_adam = adam.seconds if adam is not None and adam.seconds else (0.0, 0.0)
    return IterationTime(
        low_minutes=(batches.longest_sample / fast + update + batches.steps * fast_adam + device.switch_s) / 60,
        high_minutes=(batches.longest_sample / slow + update + batches.steps * slow_adam + device.switch_s) / 60,
        measured=False,
    )


def update_flops(config: Config, shape: ModelShape, batches: Batches) -> float:
    """Floating-point operations of one update: two a parameter and token for each pass, and those of attention.

    Passes: forward, backward (two), recomputation, old log-probs, reference.
    """
    passes = 3 + (config.perf.recompute_granularity == "full") + 1 + has_reference(config)
    length = batches.longest_sample * MEAN_LENGTH_SHARE
    attention = shape.num_layers * shape.num_heads * (shape.qk_head_dim + shape.v_head_dim) * length / 2
    return passes * 2 * (active_parameters(shape) + attention) * batches.samples * length


def active_parameters(shape: ModelShape) -> int:
    """Parameters that one token is multiplied with: its experts only, no embedding."""
    modules = model_modules(shape)
    dense = sum(count * module.parameters for module, count in modules.main if module is not modules.expert)
    experts = shape.num_moe_layers * shape.num_experts_per_token * modules.expert.parameters
    return dense + experts - modules.embedding.parameters
