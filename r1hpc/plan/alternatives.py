"""What the KV cache of an engine would hold with other settings."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from r1hpc.config import Config
from r1hpc.plan.assumptions import Assumptions
from r1hpc.plan.engine import gpu_limit_bytes, make_engine
from r1hpc.plan.gpu_memory import rollout_parts
from r1hpc.plan.model_shape import ModelShape
from r1hpc.plan.parameters import ModelModules
from r1hpc.plan.topology import Topology

TARGET_FRACTION = 0.7
"""mem_fraction_static that the recipe reached once sleeping trainers gave their process groups back."""


@dataclass(frozen=True)
class Alternative:
    """The KV cache of an engine with other settings."""

    settings: str
    tokens_per_engine: int
    tokens_per_request: int
    """Of a request, when the configured concurrency is running."""


def engine_alternatives(
    config: Config, shape: ModelShape, modules: ModelModules, topology: Topology, device: Assumptions
) -> tuple[Alternative, ...]:
    """More attention ranks, and more memory for the cache, where they fit beside the sleeping trainer.

    The MLA cache lies whole on every GPU of an attention rank: one GPU a rank stores each token once, at the price of
    attention weights, embedding and head whole on every GPU.
    """
    sglang = config.sglang
    if not sglang.enable_dp_attention or not device.sleeps:
        return ()
    current = (sglang.dp_size, sglang.mem_fraction_static)
    ranks = sorted({sglang.dp_size, sglang.rollout_num_gpus_per_engine})
    fractions = sorted({sglang.mem_fraction_static, max(sglang.mem_fraction_static, TARGET_FRACTION)})
    found = []
    for dp_size, fraction in product(ranks, fractions):
        if (dp_size, fraction) == current:
            continue
        engine = make_engine(config, shape, modules, device, dp_size=dp_size, mem_fraction=fraction)
        used = sum(part.bytes for part in rollout_parts(config, shape, engine, (), topology, device))
        if engine.kv_tokens_per_rank and used <= gpu_limit_bytes(config, device):
            settings = f"sglang.dp_size {dp_size}, mem_fraction_static {fraction:g}"
            found.append(Alternative(settings, engine.kv_tokens_per_engine, engine.tokens_per_request))
    return tuple(found)
