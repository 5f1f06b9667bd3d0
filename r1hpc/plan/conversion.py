"""What the convert stage writes, how it is divided, and what the recipe's own converter would hold in memory."""

from __future__ import annotations

from dataclasses import dataclass

from r1hpc.config import Config
from r1hpc.plan.layers import dense_layers_in, split_layers
from r1hpc.plan.model_shape import ModelShape
from r1hpc.plan.parameters import ModelModules, Module, total_bytes


@dataclass(frozen=True)
class ConversionPlan:
    """The slices that the convert stage writes."""

    slices: int
    layers: tuple[int, ...]
    """Of each pipeline slice; prediction layers are in the last one besides."""
    slice_bytes: tuple[int, ...]
    """Written by an expert slice of each pipeline slice, give or take a tensor; all alike where `balance` is bytes."""
    recipe_rank_bytes: tuple[int, ...]
    """bf16 weights that a rank of the recipe's converter, which builds the model, holds for each pipeline slice: its
    experts, and all else of the layers four times over. A worker of ours holds a few MB."""
    recipe_last_rank_bytes_with_mtp: int


def make_conversion(config: Config, shape: ModelShape, modules: ModelModules) -> ConversionPlan:
    """The slices of a configuration."""
    convert = config.convert
    layers = split_layers(
        shape.num_layers,
        convert.pipeline_model_parallel_size,
        convert.decoder_first_pipeline_num_layers,
        convert.decoder_last_pipeline_num_layers,
    )
    parts = convert.expert_model_parallel_size
    written = [_stage_bytes(shape, modules, layers, index, shape.num_experts) for index in range(len(layers))]
    written[-1] += total_bytes(modules.mtp, None)
    if convert.balance == "bytes":
        written = [sum(written) // len(layers)] * len(layers)
    held = [_stage_bytes(shape, modules, layers, index, shape.num_experts // parts) for index in range(len(layers))]
    mtp = _moe_layer_bytes(modules, shape.num_experts // parts) + _bytes(modules.mtp_projection, modules.embedding)
    return ConversionPlan(
        slices=len(layers) * parts,
        layers=layers,
        slice_bytes=tuple(size // parts for size in written),
        recipe_rank_bytes=tuple(held),
        recipe_last_rank_bytes_with_mtp=held[-1] + shape.num_mtp_layers * mtp,
    )


def _stage_bytes(shape: ModelShape, modules: ModelModules, layers: tuple[int, ...], index: int, experts: int) -> int:
    """bf16 bytes of one pipeline slice with so many experts a layer, prediction layers left out."""
    dense = dense_layers_in(sum(layers[:index]), layers[index], shape.num_dense_layers)
    dense_layer = sum(count * module.weight_bytes(None) for module, count in modules.dense_layer)
    ends = _bytes(modules.embedding) if index == 0 else 0
    if index == len(layers) - 1:
        ends += _bytes(modules.head, modules.final_norm)
    return dense * dense_layer + (layers[index] - dense) * _moe_layer_bytes(modules, experts) + ends


def _moe_layer_bytes(modules: ModelModules, experts: int) -> int:
    held = [(module, experts if module is modules.expert else count) for module, count in modules.moe_layer]
    return sum(count * module.weight_bytes(None) for module, count in held)


def _bytes(*modules: Module) -> int:
    return sum(module.weight_bytes(None) for module in modules)
