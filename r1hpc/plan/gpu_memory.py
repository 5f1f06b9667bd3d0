"""Bytes on one GPU in each phase, stage by stage; the worst stage decides."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from r1hpc.config import Config
from r1hpc.plan.activations import activation_parts
from r1hpc.plan.assumptions import ADAM_BYTES, Assumptions
from r1hpc.plan.batches import Batches
from r1hpc.plan.engine import EnginePlan, gpu_limit_bytes
from r1hpc.plan.engine_memory import engine_asleep, engine_awake, engine_kept_bytes
from r1hpc.plan.layers import Stage
from r1hpc.plan.memory import MemoryPart, MemoryUse, parts
from r1hpc.plan.model_shape import ModelShape
from r1hpc.plan.parameters import BF16, FP32
from r1hpc.plan.sync import bucket_bytes
from r1hpc.plan.topology import Topology

GRAD_BYTES = FP32
"""Of one element of the gradient buffer: gradients are always summed in float32."""
SYNC_GROUPS = 2
"""Process groups of a sync: of all ranks, and of the couriers."""
SYNC_BUCKETS = 4
"""Buckets on a GPU during a sync: two payloads in turn, and the weights of one in bf16, twice as large."""


@dataclass(frozen=True)
class Phase:
    """One phase on the GPUs of every stage."""

    name: str
    stages: tuple[MemoryUse, ...]

    @property
    def worst_stage(self) -> int:
        """The stage whose GPUs are fullest."""
        return max(range(len(self.stages)), key=lambda index: self.stages[index].total_bytes)

    @property
    def worst(self) -> MemoryUse:
        """The fullest GPU."""
        return self.stages[self.worst_stage]


def param_bytes(config: Config) -> int:
    """Of one trained parameter on the GPU."""
    return FP32 if config.megatron.params_dtype == "fp32" else BF16


def owned_parameters(stage: Stage, topology: Topology) -> int:
    """Parameters whose optimizer state one GPU keeps: dense ones are sharded over DP x CP, experts over expert DP."""
    return ceil(stage.dense_parameters / (topology.dp * topology.cp)) + ceil(stage.expert_parameters / topology.edp)


def groups_rebuilt(config: Config, device: Assumptions) -> bool:
    """Whether the trainer destroys its process groups when it goes to sleep, and makes them again when it wakes."""
    if config.perf.process_groups == "auto":
        return config.hosts.num_nodes * config.hosts.gpus_per_node > device.rebuild_groups_above
    return config.perf.process_groups == "rebuild"


def trainer_groups_bytes(topology: Topology, device: Assumptions) -> int:
    """Buffers of the trainer's process groups on one GPU."""
    return device.trainer_groups.of(topology.world_size)


def trainer_asleep_bytes(topology: Topology, device: Assumptions, rebuilt: bool) -> int:
    """What a sleeping trainer keeps of a GPU, with its process groups destroyed (`rebuilt` on waking) or kept."""
    return device.trainer_asleep.of(topology.world_size) + (0 if rebuilt else trainer_groups_bytes(topology, device))


def model_parts(config: Config, stage: Stage, topology: Topology) -> tuple[MemoryPart, ...]:
    """What the trained model itself keeps on a GPU."""
    billions = f"{stage.parameters / 1e9:.2f} B"
    weight, gradient = param_bytes(config), GRAD_BYTES
    on_gpu = 0 if config.optimizer.optimizer_cpu_offload else ADAM_BYTES * owned_parameters(stage, topology)
    return parts(
        MemoryPart("weights", weight * stage.parameters, f"{billions} x {weight} B"),
        MemoryPart("gradients", gradient * stage.parameters, f"{billions} x {gradient} B"),
        MemoryPart("optimizer", on_gpu, f"{ADAM_BYTES} B x {owned_parameters(stage, topology) / 1e9:.2f} B owned"),
    )


def make_phases(
    config: Config,
    shape: ModelShape,
    topology: Topology,
    stages: tuple[Stage, ...],
    engine: EnginePlan,
    batches: Batches,
    device: Assumptions,
) -> tuple[Phase, ...]:
    """The phases train, rollout and sync."""
    limit = gpu_limit_bytes(config, device)
    train, rollout, sync = [], [], []
    for stage in stages:
        model = model_parts(config, stage, topology)
        awake = (
            *model,
            *activation_parts(config, shape, topology, stage, batches),
            MemoryPart("process groups", trainer_groups_bytes(topology, device), "NCCL buffers"),
            MemoryPart("trainer process", device.context_bytes, "CUDA context" if device.sleeps else "libraries"),
        )
        train.append(MemoryUse(parts(*awake, *engine_asleep(engine, device)), limit))
        rollout.append(MemoryUse(rollout_parts(config, shape, engine, model, topology, device), limit))
        sync.append(MemoryUse(_sync_parts(config, shape, model, topology, engine, device), limit))
    return Phase("train", tuple(train)), Phase("rollout", tuple(rollout)), Phase("sync", tuple(sync))


def rollout_parts(
    config: Config,
    shape: ModelShape,
    engine: EnginePlan,
    model: tuple[MemoryPart, ...],
    topology: Topology,
    device: Assumptions,
) -> tuple[MemoryPart, ...]:
    """What lies on a GPU while an engine runs; `model` counts only where a sleeping trainer keeps its memory.

    An engine that was started again is given its weights while the others generate: all ranks take part in that.
    """
    rejoined = 0
    if engine.num_engines > 1 and device.sleeps:
        rejoined = SYNC_GROUPS * device.communicator_bytes + sync_bucket_bytes(config, shape, engine)
    return parts(
        *engine_awake(engine, device),
        *_trainer_asleep(config, model, topology, device),
        MemoryPart("sync of one engine", rejoined, "that was started again in the rollout"),
    )


def _trainer_asleep(
    config: Config, model: tuple[MemoryPart, ...], topology: Topology, device: Assumptions
) -> tuple[MemoryPart, ...]:
    if not device.sleeps:
        return (*model, MemoryPart("trainer process", device.context_bytes, "libraries"))
    rebuilt = groups_rebuilt(config, device)
    note = "process groups destroyed" if rebuilt else "process groups kept"
    return (MemoryPart("sleeping trainer", trainer_asleep_bytes(topology, device, rebuilt), note),)


def sync_bucket_bytes(config: Config, shape: ModelShape, engine: EnginePlan) -> int:
    """Of the payloads of a sync on one GPU: usual ones, or the embedding, which may be larger, beside one of them."""
    bucket = min(bucket_bytes(config), engine.weight_bytes)
    return max(SYNC_BUCKETS * bucket, shape.vocab_size * shape.hidden_size * engine.form.element_bytes + bucket)


def _sync_parts(
    config: Config,
    shape: ModelShape,
    model: tuple[MemoryPart, ...],
    topology: Topology,
    engine: EnginePlan,
    device: Assumptions,
) -> tuple[MemoryPart, ...]:
    resident = () if device.sleeps else model
    # Where training's process groups are destroyed a sync still has two of its own, which is charged like all of them.
    asleep = trainer_asleep_bytes(topology, device, rebuilt=False) if device.sleeps else device.context_bytes
    return parts(
        MemoryPart("engine weights", engine.weight_bytes, engine.form.name),
        MemoryPart("sync buckets", sync_bucket_bytes(config, shape, engine), "sync.bucket_mib"),
        MemoryPart("trainer with process groups", asleep, "its weights are read from host memory"),
        MemoryPart("engine process, groups, DeepEP", engine_kept_bytes(engine, device)),
        *resident,
    )
