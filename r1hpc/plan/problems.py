"""Numbers of the trainer that do not divide. Each problem names its key, shows the arithmetic and the knob to turn.

Rules between keys that need neither the model nor the grid are the configuration's own (`r1hpc.config.rules`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import gcd

from r1hpc.config import Config
from r1hpc.plan.batches import steps_per_rollout
from r1hpc.plan.layers import split_layers
from r1hpc.plan.model_shape import ModelShape


@dataclass(frozen=True)
class Problem:
    """One reason why a configuration cannot be planned or cannot fit."""

    key: str
    """The dotted key to look at first."""
    text: str


def number_problems(config: Config, shape: ModelShape) -> tuple[Problem, ...]:
    """Every number that does not divide as it must."""
    checks = (_grid, _model, _layers, _batches, _convert)
    return tuple(problem for check in checks for problem in check(config, shape))


def _grid(config: Config, shape: ModelShape) -> Iterator[Problem]:
    perf, hosts = config.perf, config.hosts
    tp, cp, pp = perf.tensor_model_parallel_size, perf.context_parallel_size, perf.pipeline_model_parallel_size
    ep, etp = perf.expert_model_parallel_size, perf.expert_tensor_parallel_size
    world = hosts.num_nodes * hosts.gpus_per_node
    gpus = f"{hosts.num_nodes} nodes * {hosts.gpus_per_node} GPUs = {world}"
    if world % (tp * cp * pp):
        yield Problem(
            "perf.tensor_model_parallel_size",
            f"perf: tp({tp}) * cp({cp}) * pp({pp}) = {tp * cp * pp} does not divide {gpus};"
            f" change the sizes or hosts.num_nodes{_nearest_nodes(tp * cp * pp, hosts.num_nodes, hosts.gpus_per_node)}",
        )
    if world % (etp * ep * pp):
        yield Problem(
            "perf.expert_model_parallel_size",
            f"perf: etp({etp}) * ep({ep}) * pp({pp}) = {etp * ep * pp} does not divide {gpus};"
            " change expert_model_parallel_size or expert_tensor_parallel_size",
        )
    if shape.num_experts % ep:
        yield Problem(
            "perf.expert_model_parallel_size",
            f"expert_model_parallel_size {ep} does not divide the {shape.num_experts} experts of the model",
        )


def _nearest_nodes(product: int, num_nodes: int, per_node: int) -> str:
    """The number of nodes closest to `num_nodes` whose GPUs the product divides, unless it is more than twice that."""
    step = product // gcd(product, per_node)
    below = num_nodes // step * step
    nearest = min((below, below + step), key=lambda nodes: abs(nodes - num_nodes)) or step
    return f" ({nearest} nodes * {per_node} GPUs would do)" if nearest <= 2 * num_nodes else ""


def _model(config: Config, shape: ModelShape) -> Iterator[Problem]:
    perf = config.perf
    tp = perf.tensor_model_parallel_size
    split_over_tp = {
        "attention heads": shape.num_heads,
        "dense MLP width": shape.intermediate_size,
        "shared expert width": shape.shared_intermediate_size,
        "vocabulary size": shape.vocab_size,
    }
    for name, size in split_over_tp.items():
        if size % tp:
            yield Problem(
                "perf.tensor_model_parallel_size",
                f"tensor_model_parallel_size {tp} does not divide the model's {name} {size}",
            )


def _layers(config: Config, shape: ModelShape) -> Iterator[Problem]:
    perf = config.perf
    try:
        split_layers(
            shape.num_layers,
            perf.pipeline_model_parallel_size,
            perf.decoder_first_pipeline_num_layers,
            perf.decoder_last_pipeline_num_layers,
        )
    except ValueError as error:
        yield Problem("perf.decoder_last_pipeline_num_layers", f"perf, pipeline stages: {error}")


def _batches(config: Config, _shape: ModelShape) -> Iterator[Problem]:
    perf, hosts, rollout = config.perf, config.hosts, config.rollout
    model = perf.tensor_model_parallel_size * perf.context_parallel_size * perf.pipeline_model_parallel_size
    world = hosts.num_nodes * hosts.gpus_per_node
    batch = rollout.samples_per_rollout // steps_per_rollout(config)
    if world % model == 0 and batch % (world // model):
        yield Problem(
            "rollout.rollout_batch_size",
            f"{rollout.samples_per_rollout} samples / {steps_per_rollout(config)} steps = {batch} a step do not divide"
            f" over {world // model} data-parallel ranks ({world} GPUs / (tp * cp * pp = {model}));"
            " change rollout_batch_size or num_steps_per_rollout",
        )


def _convert(config: Config, shape: ModelShape) -> Iterator[Problem]:
    convert = config.convert
    experts, stages = convert.expert_model_parallel_size, convert.pipeline_model_parallel_size
    if shape.num_experts % experts:
        yield Problem(
            "convert.expert_model_parallel_size",
            f"convert: expert_model_parallel_size {experts} does not divide {shape.num_experts} experts",
        )
    if convert.num_tasks > stages * experts:
        yield Problem(
            "convert.num_tasks",
            f"convert: {convert.num_tasks} tasks for {stages} pipeline * {experts} expert slices"
            f" = {stages * experts}; at least {convert.num_tasks - stages * experts} would have nothing to do",
        )
    try:
        split_layers(
            shape.num_layers,
            stages,
            convert.decoder_first_pipeline_num_layers,
            convert.decoder_last_pipeline_num_layers,
        )
    except ValueError as error:
        yield Problem("convert.decoder_last_pipeline_num_layers", f"convert, pipeline slices: {error}")
