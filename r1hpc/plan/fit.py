"""What does not fit: GPU memory, host memory, the KV cache of a single request, the time limit."""

from __future__ import annotations

from collections.abc import Iterator

from r1hpc.config import Config
from r1hpc.plan.assumptions import GB
from r1hpc.plan.engine import EnginePlan
from r1hpc.plan.gpu_memory import Phase
from r1hpc.plan.host_memory import HostMemory, has_reference
from r1hpc.plan.memory import MemoryUse
from r1hpc.plan.problems import Problem
from r1hpc.plan.times import TimePlan


def fit_problems(
    config: Config, engine: EnginePlan, phases: tuple[Phase, ...], hosts: tuple[HostMemory, ...], times: TimePlan
) -> tuple[Problem, ...]:
    """Everything that is larger than its limit."""
    return (
        *_gpu_memory(config, phases),
        *_host_memory(config, hosts),
        *_single_request(config, engine),
        *_signal_lead(config, times),
    )


def _gpu_memory(config: Config, phases: tuple[Phase, ...]) -> Iterator[Problem]:
    for phase in phases:
        if not phase.worst.fits:
            yield Problem(
                "hosts.gpu_memory_gib",
                f"GPU memory, {phase.name}, stage {phase.worst_stage}: {_sum(phase.worst)}"
                f" a GPU ({config.hosts.gpu_memory_gib:g} GiB as sold); {_gpu_knob(config, phase.name)}",
            )


def _gpu_knob(config: Config, phase: str) -> str:
    if config.hosts.device == "cpu":
        return "give a slot more of the host (hosts.gpu_memory_gib) or use fewer slots"
    if phase == "rollout":
        return "lower sglang.mem_fraction_static"
    if phase == "sync":
        return "raise sglang.rollout_num_gpus_per_engine"
    if not config.optimizer.optimizer_cpu_offload:
        return "turn optimizer.optimizer_cpu_offload on, or raise perf.expert_model_parallel_size"
    if config.perf.recompute_granularity != "full":
        return "set perf.recompute_granularity: full, or lower perf.max_tokens_per_gpu"
    return (
        "lower perf.max_tokens_per_gpu, or raise perf.expert_model_parallel_size, pipeline_model_parallel_size"
        " or hosts.num_nodes"
    )


def _host_memory(config: Config, hosts: tuple[HostMemory, ...]) -> Iterator[Problem]:
    worst = max(hosts, key=lambda host: host.use.total_bytes)
    if worst.use.fits:
        return
    knob = "raise hosts.num_nodes"
    if config.hosts.device == "cpu":
        knob = "give the rehearsal more memory (hosts.host_memory_gib) or fewer slots a host"
    elif has_reference(config) and config.grpo.kl_loss_coef == 0 and config.grpo.kl_coef == 0:
        knob += ", or drop grpo.use_kl_loss: its coefficient is 0"
    yield Problem(
        "hosts.host_memory_gib",
        f"host memory of node{'s' if worst.nodes.count('-') else ''} {worst.nodes}: {_sum(worst.use)} a node; {knob}",
    )


def _sum(use: MemoryUse) -> str:
    terms = " + ".join(f"{part.name} {part.bytes / GB:.1f}" for part in use.parts)
    return f"{terms} = {use.total_bytes / GB:.1f} GB, more than {use.limit_bytes / GB:.1f} GB"


def _single_request(config: Config, engine: EnginePlan) -> Iterator[Problem]:
    if engine.kv_tokens_per_rank < engine.longest_request:
        yield Problem(
            "sglang.mem_fraction_static",
            f"the KV cache of an attention rank holds {engine.kv_tokens_per_rank:,} tokens, fewer than one request of"
            f" {engine.longest_request:,}: it could never finish; raise mem_fraction_static"
            f" (now {config.sglang.mem_fraction_static:g}, engine weights {engine.weight_bytes / GB:.1f} GB a GPU),"
            " or lower rollout_max_response_len",
        )


def _signal_lead(config: Config, times: TimePlan) -> Iterator[Problem]:
    limit_s = 60 * config.slurm.time_limit
    if times.signal_lead_s < limit_s:
        return
    yield Problem(
        "slurm.time_limit",
        f"a save takes {times.save_s:.0f} s at run.file_system_gbps = {config.run.file_system_gbps:g}, so Slurm must"
        f" signal {times.needed_lead_s} s before the end, not less than time_limit = {limit_s} s;"
        " raise time_limit, or set slurm.signal_lead_minutes and rely on the periodic commits",
    )
