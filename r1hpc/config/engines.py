"""The two libraries: what r1hpc itself reads of their arguments, typed; every other argument passes through by name."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from r1hpc.config.base import OpenSection
from r1hpc.config.quantities import NonNegativeFloat, Number, PositiveInt

AllToAll = Literal[
    "none",
    "deepep",
    "mooncake",
    "nixl",
    "mori",
    "ascend_fuseep",
    "flashinfer",
    "megamoe",
    "deepep_v2",
    "ascend_tp",
    "pplx",
    "flashinfer_megamoe",
]
"""Those of SGLang 0.5.21."""


class SglangConfig(OpenSection):
    """The rollout engine. Any SGLang server argument may stand here under its own name (flag: --sglang-NAME)."""

    rollout_num_gpus_per_engine: PositiveInt = 1
    """GPUs of one engine: SGLang's tp_size. --rollout-num-gpus-per-engine"""
    server_concurrency: PositiveInt = 512
    """Requests in flight per engine, kept by the client. --sglang-server-concurrency"""
    mem_fraction_static: Annotated[float, Field(ge=0.01, lt=1)] = 0.7
    """Share of GPU memory for weights and KV cache. --sglang-mem-fraction-static"""
    ep_size: PositiveInt = 1
    """Expert-parallel size; the GPUs of the engine when experts are spread. --sglang-ep-size"""
    enable_dp_attention: bool = False
    """Each data-parallel rank attends for its own requests; experts stay spread over all GPUs.
    --sglang-enable-dp-attention"""
    dp_size: PositiveInt = 1
    """Data-parallel attention ranks in an engine. --sglang-dp-size"""
    moe_dense_tp_size: PositiveInt | None = None
    """Tensor-parallel size of the dense layers; 1 keeps them whole on each GPU. --sglang-moe-dense-tp-size"""
    enable_dp_lm_head: bool = False
    """Each data-parallel rank computes its own logits. --sglang-enable-dp-lm-head"""
    disable_radix_cache: bool = False
    """Do not share the prefixes of requests in the KV cache. --sglang-disable-radix-cache"""
    moe_a2a_backend: AllToAll = "none"
    """How tokens travel to their experts; deepep on H100. --sglang-moe-a2a-backend"""
    deepep_mode: Literal["auto", "normal", "low_latency"] = "auto"
    """auto prefills with normal and decodes with low_latency kernels. --sglang-deepep-mode"""
    kv_cache_dtype: Literal["auto", "bf16", "bfloat16", "fp8_e4m3", "fp8_e5m2"] = "auto"
    """auto is bf16; fp8_e4m3 or fp8_e5m2 halve the cache. SGLang's 4-bit and mx forms need newer GPUs than H100.
    --sglang-kv-cache-dtype"""


class MegatronConfig(OpenSection):
    """The trainer. Any field of Megatron's MLATransformerConfig may stand here under its own name."""

    attention_dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Megatron itself takes 0.1 where nothing is said. --attention-dropout"""
    hidden_dropout: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    """Megatron itself takes 0.1 where nothing is said. --hidden-dropout"""
    accumulate_allreduce_grads_in_fp32: bool = True
    """Sum gradients over micro-batches and ranks in fp32. --accumulate-allreduce-grads-in-fp32"""
    attention_softmax_in_fp32: bool = True
    """Softmax of attention in fp32. --attention-softmax-in-fp32"""
    moe_token_dispatcher_type: Literal["alltoall", "allgather", "flex"] = "alltoall"
    """How tokens travel to their experts. --moe-token-dispatcher-type"""
    moe_flex_dispatcher_backend: Literal["deepep", "hybridep"] | None = None
    """Backend of the flex dispatcher. --moe-flex-dispatcher-backend"""
    params_dtype: Literal["bf16", "fp32"] = "bf16"
    """Precision of parameters and activations; the rehearsal trains in fp32 so that layouts compare exactly."""
    moe_aux_loss_coeff: NonNegativeFloat = 0.0
    """Weight of the load-balancing loss; R1 is trained without. --moe-aux-loss-coeff"""
