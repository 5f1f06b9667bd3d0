"""What a weight sync moves."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from r1hpc.plan.assumptions import BUCKET_BYTES
from r1hpc.plan.engine import EnginePlan
from r1hpc.plan.parameters import BF16, ModelModules, total_bytes


@dataclass(frozen=True)
class SyncPlan:
    """Bytes of one publication of the weights; MTP layers are not trained and not sent."""

    bf16_bytes: int
    fp8_bytes: int | None
    """Without scales; null where the engines are not quantised."""
    scale_bytes: int
    buckets: int
    """Of 512 MiB, had every GPU to see the whole model in bf16: the usual way."""
    engine_buckets: int
    """Of 512 MiB, in the engine's format."""
    expert_bytes_per_gpu: int
    """Routed: the experts that a GPU serves."""
    dense_bytes_per_gpu: int
    """All else, whole: SGLang slices whole tensors on loading. It crosses the fabric once a node."""

    @property
    def bytes_per_gpu(self) -> int:
        """Into each GPU when experts are routed to where they are served."""
        return self.expert_bytes_per_gpu + self.dense_bytes_per_gpu


def make_sync(modules: ModelModules, engine: EnginePlan) -> SyncPlan:
    """The sync from the trainer into `engine`'s format."""
    block, element = engine.form.fp8_block, max(BF16, engine.form.element_bytes)
    scales = sum(count * module.scale_bytes(block) for module, count in modules.main)
    bf16 = total_bytes(modules.main, None)
    sent = sum(count * module.weight_bytes(block, element=element) for module, count in modules.main)
    experts = modules.num_moe_layers * modules.num_experts
    each = modules.expert.weight_bytes(block, element=element)
    all_experts = experts * each
    return SyncPlan(
        bf16_bytes=bf16,
        fp8_bytes=sent if block is not None else None,
        scale_bytes=scales,
        buckets=ceil(bf16 / BUCKET_BYTES),
        engine_buckets=ceil((sent + scales) / BUCKET_BYTES),
        expert_bytes_per_gpu=all_experts // (engine.grid.expert_parallel * engine.grid.expert_tensor),
        dense_bytes_per_gpu=sent - all_experts,
    )
