"""Weights of one GPU of a rollout engine, as SGLang 0.5.21 divides DeepSeek-V3."""

from __future__ import annotations

from dataclasses import dataclass

from r1hpc.config.engines import SglangConfig
from r1hpc.plan.memory import MemoryPart, parts
from r1hpc.plan.model_shape import ModelShape
from r1hpc.plan.parameters import BF16, FP32, ModelModules, Module


@dataclass(frozen=True)
class EngineFormat:
    """How an engine stores weights: fp8 blocks, bf16, or float32 on a CPU."""

    fp8_block: tuple[int, int] | None
    element_bytes: int
    """Of a number that is not quantised."""

    @property
    def name(self) -> str:
        """fp8, bf16 or fp32."""
        if self.fp8_block is not None:
            return "fp8"
        return "bf16" if self.element_bytes == BF16 else "fp32"


def engine_format(shape: ModelShape, device: str) -> EngineFormat:
    """A CPU engine starts from the bf16 copy in float32; a GPU engine keeps the format of its checkpoint."""
    return EngineFormat(None, FP32) if device == "cpu" else EngineFormat(shape.fp8_block, BF16)


@dataclass(frozen=True)
class EngineGrid:
    """Over how many GPUs each kind of weight of an engine is divided."""

    gpus: int
    """The engine's GPUs: SGLang's tp_size."""
    dp_size: int
    """Attention ranks with different requests; each is `attention` GPUs."""
    attention: int
    expert_parallel: int
    """Groups that the experts are dealt to."""
    expert_tensor: int
    """GPUs that share one expert."""
    dense_mlp: int
    shared: int
    head: int
    deepep: bool
    """Tokens go to their experts through DeepEP's buffers."""


def engine_grid(sglang: SglangConfig, dp_size: int | None = None) -> EngineGrid:
    """The grid of an engine; `dp_size` in place of the configured one asks what another would cost.

    With an all-to-all backend SGLang sets ep_size to tp_size and keeps shared experts whole on every GPU.
    """
    gpus = sglang.rollout_num_gpus_per_engine
    ranks = (dp_size or sglang.dp_size) if sglang.enable_dp_attention else 1
    all_to_all = sglang.moe_a2a_backend != "none"
    expert_parallel = gpus if all_to_all else sglang.ep_size
    return EngineGrid(
        gpus=gpus,
        dp_size=ranks,
        attention=gpus // ranks,
        expert_parallel=expert_parallel,
        expert_tensor=gpus // expert_parallel,
        dense_mlp=sglang.moe_dense_tp_size or gpus,
        shared=1 if all_to_all else gpus,
        head=gpus // ranks if sglang.enable_dp_lm_head else gpus,
        deepep=sglang.moe_a2a_backend == "deepep",
    )


def engine_weights(
    shape: ModelShape, modules: ModelModules, grid: EngineGrid, form: EngineFormat
) -> tuple[MemoryPart, ...]:
    """The weights of one GPU, kind by kind."""
    layers, moe_layers = shape.num_layers, shape.num_moe_layers

    def bytes_of(module: Module, divided: int) -> int:
        scales = module.scale_bytes(form.fp8_block) // divided
        return module.weight_bytes(form.fp8_block, divided, form.element_bytes) + scales

    experts = moe_layers * shape.num_experts // grid.expert_parallel
    kv_up = shape.kv_lora_rank * shape.num_heads * (shape.qk_nope_head_dim + shape.v_head_dim)
    return parts(
        MemoryPart(
            "experts",
            experts * bytes_of(modules.expert, grid.expert_tensor),
            f"{shape.num_experts // grid.expert_parallel} of {shape.num_experts} in {moe_layers} layers",
        ),
        MemoryPart("attention", layers * bytes_of(modules.attention, grid.attention), f"over {grid.attention} GPUs"),
        MemoryPart(
            "absorbed kv_b",
            layers * form.element_bytes * kv_up // grid.attention,
            "unquantised copy that decoding multiplies with",
        ),
        MemoryPart("shared experts", moe_layers * bytes_of(modules.shared, grid.shared), _copies(grid.shared)),
        MemoryPart(
            "dense MLP", shape.num_dense_layers * bytes_of(modules.dense_mlp, grid.dense_mlp), _copies(grid.dense_mlp)
        ),
        MemoryPart(
            "embedding, head",
            bytes_of(modules.embedding, grid.attention) + bytes_of(modules.head, grid.head),
            f"over {grid.attention} and {grid.head} GPUs",
        ),
        MemoryPart(
            "routers, norms",
            moe_layers * bytes_of(modules.router, 1)
            + layers * bytes_of(modules.layer_norms, 1)
            + bytes_of(modules.final_norm, 1),
            "whole on every GPU",
        ),
    )


def _copies(divided: int) -> str:
    return "whole on every GPU" if divided == 1 else f"over {divided} GPUs"
