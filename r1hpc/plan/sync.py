"""What a weight sync moves, and how long it takes."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from r1hpc.config import Config
from r1hpc.plan.engine import EnginePlan
from r1hpc.plan.parameters import BF16, ModelModules, total_bytes
from r1hpc.plan.speeds import Speeds
from r1hpc.plan.topology import Topology

PAYLOAD_FILL = 0.74
"""Mean payload of a GPU over the largest of its bucket: 29.3 of 39.6 GB of R1 on 128 GPUs, as r1hpc.sync packs them
(tests/sync/test_pack_of_r1.py)."""
SLOWEST_READER = 2.2
"""What the slowest rank of each payload fetches, summed, over what a rank fetches: 22.8 of 10.5 GB, likewise."""


@dataclass(frozen=True)
class SyncTime:
    """Seconds of one publication, part by part. Trainers and engines work at once, on one payload each."""

    read_s: float
    """A trainer's share of the bf16 weights, fetched from the host and quantised."""
    experts_s: float
    """The experts that a GPU serves, from where they are trained."""
    dense_s: float
    """All else into every node over all its links, and on to each GPU there."""
    load_s: float
    """What a GPU is given, into its engine."""
    payloads_s: float
    """What payloads cost besides their bytes."""

    @property
    def seconds(self) -> float:
        """Of all of it: the slower side, and the cost of payloads."""
        return max(self.read_s + self.experts_s + self.dense_s, self.load_s) + self.payloads_s


@dataclass(frozen=True)
class SyncPlan:
    """Bytes of one publication of the weights; MTP layers are not trained and not sent."""

    bf16_bytes: int
    fp8_bytes: int | None
    """Without scales; null where the engines are not quantised."""
    scale_bytes: int
    buckets: int
    """Of sync.bucket_mib, had every GPU to see the whole model in bf16: the usual way."""
    payloads: int
    """That a GPU is given, each of sync.bucket_mib at most: about so many."""
    expert_bytes_per_gpu: int
    """Routed: the experts that a GPU serves."""
    dense_bytes_per_gpu: int
    """All else, whole: SGLang slices whole tensors on loading. It crosses the fabric once a node."""
    time: SyncTime | None
    """null where no speed is known (a CPU rehearsal)."""

    @property
    def bytes_per_gpu(self) -> int:
        """Into each GPU when experts are routed to where they are served."""
        return self.expert_bytes_per_gpu + self.dense_bytes_per_gpu


def bucket_bytes(config: Config) -> int:
    """The largest payload that a GPU is given at once."""
    return config.sync.bucket_mib * 2**20


def make_sync(
    config: Config, modules: ModelModules, engine: EnginePlan, topology: Topology, speeds: Speeds | None
) -> SyncPlan:
    """The sync from the trainer into `engine`'s format."""
    block, element = engine.form.fp8_block, max(BF16, engine.form.element_bytes)
    scales = sum(count * module.scale_bytes(block) for module, count in modules.main)
    bf16 = total_bytes(modules.main, None)
    sent = sum(count * module.weight_bytes(block, element=element) for module, count in modules.main)
    experts = modules.num_moe_layers * modules.num_experts
    each = modules.expert.weight_bytes(block, element=element)
    all_experts = experts * each
    experts_in = all_experts // (engine.grid.expert_parallel * engine.grid.expert_tensor)
    dense_in = sent - all_experts
    # Of several GPUs no two are given the same: a payload ends where the first of them is full.
    fill = 1.0 if topology.world_size == 1 else PAYLOAD_FILL
    payloads = ceil((experts_in + dense_in) / bucket_bytes(config) / fill)
    return SyncPlan(
        bf16_bytes=bf16,
        fp8_bytes=sent if block is not None else None,
        scale_bytes=scales,
        buckets=ceil(bf16 / bucket_bytes(config)),
        payloads=payloads,
        expert_bytes_per_gpu=experts_in,
        dense_bytes_per_gpu=dense_in,
        time=_time(bf16, experts_in, dense_in, payloads, topology, speeds) if speeds is not None else None,
    )


def _time(bf16: int, experts_in: int, dense_in: int, payloads: int, topology: Topology, speeds: Speeds) -> SyncTime:
    """Experts are taken to come from other nodes where there are any; a GPU alone gives itself everything."""
    links = speeds.fabric if topology.num_nodes > 1 else speeds.nvlink
    into_node = dense_in / (speeds.fabric * topology.gpus_per_node) if topology.num_nodes > 1 else 0.0
    return SyncTime(
        read_s=bf16 / topology.world_size / speeds.sync_read * (SLOWEST_READER if topology.world_size > 1 else 1),
        experts_s=experts_in / links if topology.world_size > 1 else 0.0,
        dense_s=into_node + (dense_in / speeds.nvlink if topology.gpus_per_node > 1 else 0.0),
        load_s=(experts_in + dense_in) / speeds.sync_load / (PAYLOAD_FILL if topology.world_size > 1 else 1),
        payloads_s=payloads * speeds.payload_s,
    )
