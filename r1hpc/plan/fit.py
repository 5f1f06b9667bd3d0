"""What does not fit: GPU memory, host memory, the KV cache of a single request, the time limit, an array task."""

from __future__ import annotations

from collections.abc import Iterator

from r1hpc.config import Config
from r1hpc.plan.array_stages import task_memory_problems
from r1hpc.plan.assumptions import GB
from r1hpc.plan.attempt import attempt_problems
from r1hpc.plan.engine import EnginePlan, max_total_tokens
from r1hpc.plan.gpu_memory import Phase
from r1hpc.plan.host_memory import HostMemory, has_reference
from r1hpc.plan.memory import MemoryUse
from r1hpc.plan.problems import Problem
from r1hpc.plan.times import TimePlan


def fit_problems(
    config: Config, engine: EnginePlan, phases: tuple[Phase, ...], hosts: tuple[HostMemory, ...], times: TimePlan
) -> tuple[Problem, ...]:
    """Everything that is larger than its limit."""
    rollout = next(phase.worst for phase in phases if phase.name == "rollout")
    return (
        *_gpu_memory(config, engine, phases),
        *_host_memory(config, hosts),
        *_single_request(config, engine, rollout),
        *attempt_problems(config, times),
        *task_memory_problems(config),
    )


def _gpu_memory(config: Config, engine: EnginePlan, phases: tuple[Phase, ...]) -> Iterator[Problem]:
    for phase in phases:
        if not phase.worst.fits:
            yield Problem(
                "hosts.gpu_memory_gib",
                f"GPU memory, {phase.name}, stage {phase.worst_stage}: {_sum(phase.worst)}"
                f" a GPU ({config.hosts.gpu_memory_gib:g} GiB as sold); {_gpu_knob(config, engine, phase)}",
            )


def _gpu_knob(config: Config, engine: EnginePlan, phase: Phase) -> str:
    if config.hosts.device == "cpu":
        return "give a slot more of the host (hosts.gpu_memory_gib) or use fewer slots"
    if phase.name == "rollout" and _has_room(engine, phase.worst, engine.longest_request):
        return "lower sglang.mem_fraction_static"
    if phase.name in ("rollout", "sync"):
        return _larger_engine(config, engine)
    return _trainer_knob(config, phase.worst)


def _trainer_knob(config: Config, use: MemoryUse) -> str:
    spread = "raise perf.expert_model_parallel_size, pipeline_model_parallel_size or hosts.num_nodes"
    if not config.optimizer.optimizer_cpu_offload:
        return "turn optimizer.optimizer_cpu_offload on, or raise perf.expert_model_parallel_size"
    if sum(part.bytes for part in use.parts if part.name in ("weights", "gradients")) > use.limit_bytes:
        return spread
    if config.perf.recompute_granularity != "full":
        return "set perf.recompute_granularity: full, or lower perf.max_tokens_per_gpu"
    return f"lower perf.max_tokens_per_gpu, or {spread}"


def _larger_engine(config: Config, engine: EnginePlan) -> str:
    gpus, world = engine.grid.gpus, config.hosts.num_nodes * config.hosts.gpus_per_node
    more = f" and hosts.num_nodes with it: it has all {world} GPUs" if gpus == world else f" (now {gpus})"
    return (
        f"an engine's weights are {engine.weight_bytes / GB:.1f} GB a GPU: raise sglang.rollout_num_gpus_per_engine"
        f"{more}"
    )


def _has_room(engine: EnginePlan, rollout: MemoryUse, tokens: int) -> bool:
    """Whether a GPU that runs the engine could hold a cache of so many tokens, whatever mem_fraction_static."""
    others = rollout.total_bytes - engine.kv_bytes
    return others + tokens * engine.kv_bytes_per_token <= rollout.limit_bytes


def _host_memory(config: Config, hosts: tuple[HostMemory, ...]) -> Iterator[Problem]:
    worst = max(hosts, key=lambda host: host.use.total_bytes)
    if worst.use.fits:
        return
    knob = "raise hosts.num_nodes"
    if config.hosts.device == "cpu":
        knob = "give the rehearsal more memory (hosts.host_memory_gib) or fewer slots a host"
    elif has_reference(config) and config.grpo.kl_loss_coef == 0 and config.grpo.kl_coef == 0:
        reference = sum(part.bytes for part in worst.use.parts if part.name == "reference weights")
        enough = worst.use.total_bytes - reference <= worst.use.limit_bytes
        knob += f", {'or' if enough else 'and'} drop grpo.use_kl_loss: its coefficient is 0"
    yield Problem(
        "hosts.host_memory_gib",
        f"host memory of node{'s' if worst.nodes.count('-') else ''} {worst.nodes}: {_sum(worst.use)} a node; {knob}",
    )


def _sum(use: MemoryUse) -> str:
    terms = " + ".join(f"{part.name} {part.bytes / GB:.1f}" for part in use.parts)
    return f"{terms} = {use.total_bytes / GB:.1f} GB, more than {use.limit_bytes / GB:.1f} GB"


def _single_request(config: Config, engine: EnginePlan, rollout: MemoryUse) -> Iterator[Problem]:
    """A cache too small for one request, unless a rollout is refused already because the weights leave it no room."""
    if engine.kv_tokens_per_rank >= engine.longest_request:
        return
    limited = engine.kv_tokens_per_rank == max_total_tokens(config)
    if not limited and not _has_room(engine, rollout, 0):
        return
    key, knob = "sglang.mem_fraction_static", f"raise mem_fraction_static (now {config.sglang.mem_fraction_static:g}"
    knob += f", engine weights {engine.weight_bytes / GB:.1f} GB a GPU)"
    if limited:
        key, knob = "sglang.max_total_tokens", f"raise max_total_tokens (now {engine.kv_tokens_per_rank:,})"
    elif not _has_room(engine, rollout, engine.longest_request):
        key, knob = "sglang.rollout_num_gpus_per_engine", _larger_engine(config, engine)
    yield Problem(
        key,
        f"the KV cache of an attention rank holds {engine.kv_tokens_per_rank:,} tokens, fewer than one request of"
        f" {engine.longest_request:,}: it could never finish; {knob}, or lower rollout_max_response_len",
    )
