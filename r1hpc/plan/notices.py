"""What a plan warns of without refusing: each with its numbers and, where there is one, the knob."""

from __future__ import annotations

from collections.abc import Iterator

from r1hpc.config import Config
from r1hpc.plan.activations import local_tokens
from r1hpc.plan.alternatives import Alternative
from r1hpc.plan.assumptions import MAX_SIGNAL_LEAD_S
from r1hpc.plan.attempt import attempt_warnings
from r1hpc.plan.batches import Batches
from r1hpc.plan.engine import EnginePlan
from r1hpc.plan.gpu_memory import param_bytes
from r1hpc.plan.host_memory import HostMemory, has_reference
from r1hpc.plan.model_shape import ModelShape
from r1hpc.plan.times import TimePlan
from r1hpc.plan.topology import Topology
from r1hpc.plan.units import show_bytes, show_count, show_range


def make_warnings(
    config: Config,
    shape: ModelShape,
    topology: Topology,
    batches: Batches,
    engine: EnginePlan,
    alternatives: tuple[Alternative, ...],
    hosts: tuple[HostMemory, ...],
    times: TimePlan,
) -> tuple[str, ...]:
    """Every warning, the costliest kinds first."""
    return (
        *_retraction(engine, alternatives),
        *_tensor_parallel(config, shape, topology, batches),
        *attempt_warnings(config, times),
        *_exposure(config, times),
        *_signal_lead(config, times),
        *_reference(config, batches, hosts),
        *_data_parallel(config, topology),
        *_steps(config, batches),
        *_concurrency(batches),
    )


def _retraction(engine: EnginePlan, alternatives: tuple[Alternative, ...]) -> Iterator[str]:
    if not engine.retracts or not engine.kv_tokens_per_rank:  # no cache at all is refused
        return
    text = (
        f"KV cache: {engine.kv_tokens_per_rank:,} tokens an attention rank for {engine.requests_per_rank} requests ="
        f" {engine.tokens_per_request:,} each, but one may take {engine.longest_request:,};"
        f" {engine.longest_requests_that_fit} of full length fit. Long requests will be retracted and computed again."
    )
    if alternatives:
        best = max(alternatives, key=lambda alternative: alternative.tokens_per_engine)
        now = engine.kv_tokens_per_engine
        text += (
            f" {best.settings}: {show_count(best.tokens_per_engine)} tokens an engine instead of {show_count(now)}"
            f" ({best.tokens_per_engine / now:.1f} x)."
        )
    yield text


def _tensor_parallel(config: Config, shape: ModelShape, topology: Topology, batches: Batches) -> Iterator[str]:
    tp, per_node = topology.tp, topology.gpus_per_node
    if config.hosts.device == "cpu" or per_node % tp == 0:
        return
    groups = topology.groups("tp")
    spans = [topology.node_of(group[-1]) - topology.node_of(group[0]) + 1 for group in groups]
    tokens, element = local_tokens(config, batches), param_bytes(config)
    yield (
        f"tensor_model_parallel_size {tp} on nodes of {per_node} GPUs: {sum(span > 1 for span in spans)} of"
        f" {len(groups)} TP groups span up to {max(spans)} nodes. Every collective of theirs, several a layer, moves"
        f" {tokens:,} tokens * {shape.hidden_size:,} * {element} B ="
        f" {show_bytes(tokens * shape.hidden_size * element)} over the fabric, not over the NVLink of one node;"
        f" choose a size that divides {per_node}, unless these nodes share one NVLink domain."
    )


def _exposure(config: Config, times: TimePlan) -> Iterator[str]:
    if times.exposure_minutes is None or times.iteration is None or times.exposure_minutes[1] <= times.save_minutes:
        return
    minutes = show_range(times.iteration.low_minutes, times.iteration.high_minutes)
    hours = show_range(times.exposure_minutes[0] / 60, times.exposure_minutes[1] / 60, ".1f")
    source = "run.expected_rollout_minutes" if times.iteration.measured else "estimated"
    yield (
        f"ckpt.save_interval: {config.ckpt.save_interval} iterations * {minutes} minutes ({source}) = {hours} h at"
        f" risk; the clock commits every {times.save_minutes} minutes besides."
    )


def _signal_lead(config: Config, times: TimePlan) -> Iterator[str]:
    asked = config.slurm.signal_lead_minutes
    if times.signal_lead_s < times.needed_lead_s:
        source = f"slurm.signal_lead_minutes {asked}" if asked else f"the {MAX_SIGNAL_LEAD_S} s that --signal allows"
        yield (
            f"{source} = {times.signal_lead_s} s is less than the {times.needed_lead_s} s that a save at the time limit"
            " needs: that save will be lost, the run goes on from the commit before it."
        )
    limit = config.slurm.time_limit
    if times.save_minutes >= limit:
        yield (
            f"commits by the clock are {times.save_minutes} minutes apart, time_limit is {limit} minutes:"
            " an attempt commits only when it ends; set ckpt.save_minutes."
        )


def _reference(config: Config, batches: Batches, hosts: tuple[HostMemory, ...]) -> Iterator[str]:
    if not has_reference(config) or config.grpo.kl_loss_coef > 0 or config.grpo.kl_coef > 0:
        return
    name = "reference weights"
    held = max(sum(part.bytes for part in host.use.parts if part.name == name) for host in hosts)
    yield (
        f"grpo.kl_loss_coef is 0: the KL is a metric only, for {show_bytes(held)} of host memory a node, a forward pass"
        f" over all {batches.samples:,} samples a rollout, and two swaps of the weights on every GPU. Drop use_kl_loss,"
        " or raise ref_logprob_interval."
    )


def _data_parallel(config: Config, topology: Topology) -> Iterator[str]:
    if config.rollout.balance_data and topology.dp == 1:
        yield (
            f"rollout.balance_data does nothing: {topology.world_size} GPUs / (tp * cp * pp) = 1 data-parallel rank;"
            f" it matters from {2 * topology.world_size} GPUs on."
        )


def _steps(config: Config, batches: Batches) -> Iterator[str]:
    group = config.rollout.n_samples_per_prompt
    if batches.samples_per_step % group:
        yield (
            f"{batches.samples_per_step} samples a step split groups of {group}: samples of one prompt are trained in"
            " different steps."
        )


def _concurrency(batches: Batches) -> Iterator[str]:
    if batches.concurrency < batches.wave_requests:
        yield (
            f"sglang.server_concurrency lets {batches.concurrency:,} of the {batches.wave_requests:,} requests of a"
            " wave run at once; the others wait."
        )
