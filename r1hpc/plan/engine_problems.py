"""Numbers of the rollout engines that do not divide as SGLang needs them to."""

from __future__ import annotations

from collections.abc import Iterator

from r1hpc.config import Config
from r1hpc.plan.engine_weights import engine_format, engine_grid
from r1hpc.plan.model_shape import ModelShape
from r1hpc.plan.problems import Problem


def engine_problems(config: Config, shape: ModelShape) -> tuple[Problem, ...]:
    """Every number of the engines that does not divide."""
    placement = tuple(_placement(config))
    ranks = tuple(_attention_ranks(config, shape))
    experts = tuple(_experts(config, shape))
    blocks = () if placement or ranks or experts else tuple(_fp8_blocks(config, shape))
    return (*placement, *ranks, *experts, *blocks, *_lengths(config, shape))


def _placement(config: Config) -> Iterator[Problem]:
    gpus, per_node = config.sglang.rollout_num_gpus_per_engine, config.hosts.gpus_per_node
    world = config.hosts.num_nodes * per_node
    key = "sglang.rollout_num_gpus_per_engine"
    if world % gpus:
        yield Problem(
            key, f"{config.hosts.num_nodes} nodes * {per_node} GPUs = {world} do not divide into engines of {gpus} GPUs"
        )
    elif gpus % per_node and per_node % gpus:
        yield Problem(
            key,
            f"an engine of {gpus} GPUs fills no whole number of nodes of {per_node} GPUs, nor a part that divides one",
        )


def _attention_ranks(config: Config, shape: ModelShape) -> Iterator[Problem]:
    gpus, ranks = config.sglang.rollout_num_gpus_per_engine, config.sglang.dp_size
    if shape.num_heads % (gpus // ranks):
        yield Problem(
            "sglang.dp_size",
            f"rollout_num_gpus_per_engine {gpus} / dp_size {ranks} = {gpus // ranks} GPUs cannot share the model's"
            f" {shape.num_heads} attention heads evenly; raise dp_size",
        )


def _experts(config: Config, shape: ModelShape) -> Iterator[Problem]:
    ep = config.sglang.ep_size
    if shape.num_experts % ep:
        yield Problem("sglang.ep_size", f"ep_size {ep} does not divide the model's {shape.num_experts} experts")


def _fp8_blocks(config: Config, shape: ModelShape) -> Iterator[Problem]:
    form = engine_format(shape, config.hosts.device)
    if form.fp8_block is None:
        return
    grid, block = engine_grid(config.sglang), max(form.fp8_block)
    widths = (
        ("dense MLP", shape.intermediate_size, grid.dense_mlp, "sglang.moe_dense_tp_size", "set it to 1"),
        ("shared expert", shape.shared_intermediate_size, grid.shared, "sglang.moe_a2a_backend", "set it to deepep"),
        ("expert", shape.moe_intermediate_size, grid.expert_tensor, "sglang.ep_size", "raise it"),
    )
    for name, width, divided, key, fix in widths:
        if divided > 1 and (width % divided or width // divided % block):
            yield Problem(
                key,
                f"{name} width {width} / {divided} GPUs = {width / divided:g} is no multiple of the fp8 block {block};"
                f" {fix}",
            )


def _lengths(config: Config, shape: ModelShape) -> Iterator[Problem]:
    rollout = config.rollout
    longest = rollout.rollout_max_response_len + (rollout.rollout_max_prompt_len or 0)
    if longest > shape.max_positions:
        yield Problem(
            "rollout.rollout_max_response_len",
            f"prompts of up to {rollout.rollout_max_prompt_len or 0} tokens + responses of up to"
            f" {rollout.rollout_max_response_len} = {longest}, more than the model's {shape.max_positions} positions",
        )
