"""The rollout engines: what their weights leave for the KV cache, and how many requests it holds."""

from __future__ import annotations

from dataclasses import dataclass

from r1hpc.config import Config
from r1hpc.plan.assumptions import FRAGMENTATION, GIB, R1_HIDDEN_SIZE, R1_LAYERS, Assumptions
from r1hpc.plan.engine_weights import EngineFormat, EngineGrid, engine_format, engine_grid, engine_weights
from r1hpc.plan.memory import MemoryPart
from r1hpc.plan.model_shape import ModelShape
from r1hpc.plan.parameters import FP8, ModelModules


@dataclass(frozen=True)
class EnginePlan:
    """One engine; all are alike."""

    num_engines: int
    grid: EngineGrid
    form: EngineFormat
    weights: tuple[MemoryPart, ...]
    """Of one GPU."""
    kv_bytes_per_token: int
    """One token in the cache of one GPU: the latent of every layer, whole on each GPU of an attention rank."""
    kv_bytes: int
    """KV cache of one GPU."""
    kv_tokens_per_rank: int
    """Tokens that the GPUs of one attention rank hold together: they hold the same ones."""
    requests_per_rank: int
    """Requests that run at once on an attention rank when the client keeps all in flight."""
    longest_request: int
    """Tokens of a request that runs to its limit."""
    graph_bytes: int
    """CUDA graphs of one GPU."""
    prefill_bytes: int
    """Activations of a chunk of prompts on one GPU."""

    @property
    def weight_bytes(self) -> int:
        """Weights of one GPU."""
        return sum(part.bytes for part in self.weights)

    @property
    def kv_tokens_per_engine(self) -> int:
        """Tokens that all attention ranks of an engine hold."""
        return self.kv_tokens_per_rank * self.grid.dp_size

    @property
    def tokens_per_request(self) -> int:
        """Cache of one request when all are running."""
        return self.kv_tokens_per_rank // self.requests_per_rank

    @property
    def longest_requests_that_fit(self) -> int:
        """Requests of full length that an attention rank holds."""
        return self.kv_tokens_per_rank // self.longest_request

    @property
    def retracts(self) -> bool:
        """Whether requests can outgrow the cache: SGLang then takes some back and computes them again."""
        return self.longest_requests_that_fit < self.requests_per_rank


def make_engine(
    config: Config,
    shape: ModelShape,
    modules: ModelModules,
    device: Assumptions,
    *,
    dp_size: int | None = None,
    mem_fraction: float | None = None,
) -> EnginePlan:
    """The engine of a configuration whose numbers divide; the keyword arguments ask what other settings would give."""
    grid = engine_grid(config.sglang, dp_size)
    form = engine_format(shape, config.hosts.device)
    weights = engine_weights(shape, modules, grid, form)
    kv_element = FP8 if config.sglang.kv_cache_dtype.startswith("fp8") else form.element_bytes
    per_token = shape.latent_width * shape.num_layers * kv_element
    fraction = mem_fraction or config.sglang.mem_fraction_static
    room = static_bytes(config, device, fraction) - sum(part.bytes for part in weights)
    tokens = _kv_tokens(config, device, max(0, room) // per_token)
    rollout = config.rollout
    return EnginePlan(
        num_engines=config.hosts.num_nodes * config.hosts.gpus_per_node // grid.gpus,
        grid=grid,
        form=form,
        weights=weights,
        kv_bytes_per_token=per_token,
        kv_bytes=tokens * per_token,
        kv_tokens_per_rank=tokens,
        requests_per_rank=max(1, _requests_per_engine(config) // grid.dp_size),
        longest_request=rollout.rollout_max_response_len + (rollout.rollout_max_prompt_len or 0),
        graph_bytes=device.cuda_graph_bytes * shape.num_layers // R1_LAYERS,
        prefill_bytes=device.prefill_bytes * shape.hidden_size // R1_HIDDEN_SIZE,
    )


def usable_gpu_bytes(config: Config, device: Assumptions) -> int:
    """Of one GPU, what its driver gives to programs."""
    return int(config.hosts.gpu_memory_gib * GIB * device.usable_share)


def gpu_limit_bytes(config: Config, device: Assumptions) -> int:
    """Of one GPU, what a plan may fill: the usable bytes less what an allocator loses to fragmentation."""
    return int(usable_gpu_bytes(config, device) * (1 - FRAGMENTATION))


def static_bytes(config: Config, device: Assumptions, fraction: float) -> int:
    """Weights and KV cache of one GPU together.

    SGLang takes mem_fraction_static of what is free after its process groups are up; the trainer does not live yet.
    """
    free = usable_gpu_bytes(config, device) - device.engine_process_bytes
    free -= device.engine_groups.of(config.sglang.rollout_num_gpus_per_engine)
    return int(fraction * free)


def max_total_tokens(config: Config) -> int | None:
    """Tokens that an attention rank may cache at most, where sglang.max_total_tokens says so."""
    limit = config.sglang.passed_through.get("max_total_tokens")
    return limit if isinstance(limit, int) else None


def _kv_tokens(config: Config, device: Assumptions, measured: int) -> int:
    """The smaller of what memory holds and max_total_tokens; a CPU has no measure, there the latter alone counts."""
    limit = max_total_tokens(config)
    if limit is None:
        return measured
    return min(measured, limit) if device.sleeps else limit


def _requests_per_engine(config: Config) -> int:
    limit = config.sglang.passed_through.get("max_running_requests")
    concurrency = config.sglang.server_concurrency
    return min(concurrency, limit) if isinstance(limit, int) else concurrency
