"""Bytes in the memory of each node: nodes that carry the same pipeline stages are alike, the fullest decides."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from r1hpc.config import Config
from r1hpc.plan.assumptions import ADAM_BYTES, ADAM_STAGING_BYTES, GIB, Assumptions
from r1hpc.plan.engine import EnginePlan
from r1hpc.plan.gpu_memory import GRAD_BYTES, Phase, owned_parameters, param_bytes
from r1hpc.plan.layers import Stage
from r1hpc.plan.memory import MemoryPart, MemoryUse, parts
from r1hpc.plan.topology import Topology, fold_ranks


@dataclass(frozen=True)
class HostMemory:
    """The memory of nodes that carry the same GPUs of the same stages."""

    nodes: str
    """Their indices in the hostfile, in RangeSet notation."""
    stages: tuple[int, ...]
    use: MemoryUse
    optimizer_parameters: int
    """Parameters whose optimizer state a node keeps."""
    avoided: tuple[MemoryPart, ...]
    """What the usual implementation would hold here besides, and this one does not."""


def has_reference(config: Config) -> bool:
    """Whether the frozen reference is loaded: the KL is in the loss, or in the reward."""
    return config.grpo.use_kl_loss or config.grpo.kl_coef > 0


def make_host_memory(
    config: Config,
    topology: Topology,
    stages: tuple[Stage, ...],
    engine: EnginePlan,
    phases: tuple[Phase, ...],
    device: Assumptions,
) -> tuple[HostMemory, ...]:
    """The memory of every kind of node, in hostfile order."""
    nodes_of: dict[tuple[int, ...], list[int]] = {}
    for node in range(topology.num_nodes):
        nodes_of.setdefault(tuple(topology.node_stages(node)), []).append(node)
    return tuple(
        _host(config, topology, stages, engine, phases, device, list(gpu_stages), nodes)
        for gpu_stages, nodes in nodes_of.items()
    )


def bytes_per_stage(hosts: tuple[HostMemory, ...], num_stages: int) -> tuple[int, ...]:
    """For each stage, the fullest node that carries a GPU of it."""
    return tuple(max(host.use.total_bytes for host in hosts if stage in host.stages) for stage in range(num_stages))


def _host(
    config: Config,
    topology: Topology,
    stages: tuple[Stage, ...],
    engine: EnginePlan,
    phases: tuple[Phase, ...],
    device: Assumptions,
    gpu_stages: list[int],
    nodes: list[int],
) -> HostMemory:
    copies = Counter(gpu_stages)
    held = sum(count * stages[stage].parameters for stage, count in copies.items())
    owned = sum(count * owned_parameters(stages[stage], topology) for stage, count in copies.items())
    use = parts(
        *_optimizer_parts(config, owned, topology),
        *_weight_copies(config, held, device),
        *_engine_backup(config, engine, topology),
        MemoryPart("Ray object store", int(config.hosts.object_store_gib * GIB), "hosts.object_store_gib"),
        MemoryPart(
            "processes", 2 * topology.gpus_per_node * device.host_process_bytes, "a trainer and an engine a GPU"
        ),
        MemoryPart("Ray and agents", device.host_services_bytes, "raylet, its agents, the node agent"),
        MemoryPart("checkpoint streams", topology.gpus_per_node * device.host_io_bytes, "one a GPU"),
        MemoryPart("logical slots", _slot_bytes(phases, copies, device), "the GPU memory of a rehearsal"),
    )
    return HostMemory(
        nodes=fold_ranks(nodes),
        stages=tuple(sorted(copies)),
        use=MemoryUse(use, int(config.hosts.host_memory_gib * GIB)),
        optimizer_parameters=owned,
        avoided=_avoided(config, held, owned, engine, topology, device),
    )


def _optimizer_parts(config: Config, owned: int, topology: Topology) -> tuple[MemoryPart, ...]:
    billions = f"{owned / 1e9:.1f} B"
    if not config.optimizer.optimizer_cpu_offload:
        asleep = MemoryPart("optimizer, while engines run", ADAM_BYTES * owned, f"{ADAM_BYTES} B x {billions}")
        return (asleep,) if config.hosts.device == "cuda" else ()
    # Of few parameters the pieces are smaller: four buffers of 4 B a value.
    staging = min(topology.gpus_per_node * ADAM_STAGING_BYTES, 4 * GRAD_BYTES * owned)
    return (
        MemoryPart("host Adam", ADAM_BYTES * owned, f"master, m, v: {ADAM_BYTES} B x {billions} owned"),
        MemoryPart("host Adam staging", staging, "gradients come and weights go in pieces"),
    )


def _weight_copies(config: Config, held: int, device: Assumptions) -> tuple[MemoryPart, ...]:
    copy = param_bytes(config) * held
    note = f"{param_bytes(config)} B x {held / 1e9:.1f} B"
    reference = copy if has_reference(config) else 0
    actor = MemoryPart("actor weights", copy if device.sleeps else 0, f"{note}; source of every sync")
    return actor, MemoryPart("reference weights", reference, f"{note}; grpo.use_kl_loss")


def _engine_backup(config: Config, engine: EnginePlan, topology: Topology) -> tuple[MemoryPart, ...]:
    wanted = config.sglang.passed_through.get("enable_weights_cpu_backup") is True
    backup = engine.weight_bytes * topology.gpus_per_node if wanted else 0
    return (MemoryPart("engine weights backup", backup, "sglang.enable_weights_cpu_backup"),)


def _slot_bytes(phases: tuple[Phase, ...], copies: Counter[int], device: Assumptions) -> int:
    if device.sleeps:
        return 0
    return max(sum(n * phase.stages[stage].total_bytes for stage, n in copies.items()) for phase in phases)


def _avoided(
    config: Config, held: int, owned: int, engine: EnginePlan, topology: Topology, device: Assumptions
) -> tuple[MemoryPart, ...]:
    if not device.sleeps:
        return ()
    gradients = GRAD_BYTES * owned if config.optimizer.optimizer_cpu_offload else 0
    return parts(
        MemoryPart("gradients of host Adam", gradients, "they are read piece by piece, through its staging buffers"),
        MemoryPart(
            "backup of weights and gradients",
            (param_bytes(config) + GRAD_BYTES) * held,
            "the actor copy restores the weights, gradients start from zero",
        ),
        MemoryPart(
            "engine weights backup", engine.weight_bytes * topology.gpus_per_node, "a sync rewrites them on waking"
        ),
    )
