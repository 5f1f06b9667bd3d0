"""Megatron's own fields that the portable layers, written without Transformer Engine and apex, settle or pass on.

Every field of MLATransformerConfig of the pinned megatron-core is a key of the schema, refused in owned.py, settled
here, or passed on from here. What only makes the same numbers faster is accepted without effect; what would change
numbers or memory, and would not happen, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import Field

from r1hpc.config.quantities import PositiveInt


@dataclass(frozen=True)
class Settled:
    """Fields whose value is settled: accepted without effect and with a notice, anything but `only` refused."""

    fields: tuple[str, ...]
    why: str
    only: tuple[object, ...] = ()
    """The values that say what happens anyway; empty where every value is accepted."""


def _settled(fields: str, why: str, *only: object) -> Settled:
    return Settled(tuple(fields.split()), why, only)


AUXILIARY_LOSS: Final = (
    "Megatron weighs this loss by tokens, while the divisor of a step counts samples or trained tokens; "
    "R1 balances its experts by a bias instead"
)
_ATTENTION = "attention is r1hpc's own and picks its kernel by the device"
_NO_MTP = "no multi-token-prediction layer is trained"

SETTLED: Final[tuple[Settled, ...]] = (
    _settled(
        """apply_rope_fusion cross_entropy_fusion_impl cross_entropy_loss_fusion fused_residual_rmsnorm
        fused_single_qkv_rope masked_softmax_fusion memory_efficient_layer_norm mla_down_proj_fusion moe_permute_fusion
        moe_permute_fusion_into_hybridep moe_router_fusion persist_layer_norm use_fused_weighted_squared_relu
        use_te_activation_func use_transformer_engine_op_fuser""",
        "the fused kernel is Transformer Engine's, apex's or of a layer that is not built; the numbers are the same",
    ),
    _settled(
        """tp_comm_overlap tp_comm_bulk_wgrad tp_comm_bulk_dgrad tp_comm_overlap_ag tp_comm_overlap_rs
        tp_comm_overlap_rs_dgrad tp_comm_split_ag tp_comm_atomic_ag tp_comm_split_rs tp_comm_atomic_rs
        tp_comm_overlap_disable_qkv tp_comm_overlap_disable_fc1 tp_comm_bootstrap_backend
        overlap_moe_expert_parallel_comm overlap_dispatch_backward_with_experts_wgrad delay_wgrad_compute
        ep_overlap_early_attn_memory_release high_priority_a2a_comm_stream overlap_p2p_comm
        overlap_p2p_comm_warmup_flush defer_embedding_wgrad_compute wgrad_deferral_limit
        disable_parameter_transpose_cache""",
        "this overlap needs Transformer Engine's layers or interleaved stages; the numbers are the same",
    ),
    _settled("attention_backend flash_attention_version use_flash_attn", _ATTENTION),
    _settled("cp_comm_type", "attention is r1hpc's own: context-parallel ranks gather keys and values"),
    _settled(
        "init_method_std embedding_init_method_std perform_initialization use_cpu_initialization",
        "every weight is read from a checkpoint",
    ),
    _settled("moe_grouped_gemm", "experts are always computed as one grouped product"),
    _settled("moe_token_drop_policy", "no token is dropped"),
    _settled("moe_per_layer_logging", "there is no auxiliary loss to log"),
    _settled("mtp_loss_scaling_factor mtp_detach_heads", _NO_MTP),
    _settled("barrier_with_l1_time", "Megatron's timers do not run"),
    _settled("use_mcore_models", "Megatron core is the only trainer"),
    _settled("variable_seq_lengths", "sequences are always packed, so lengths always vary"),
    _settled("no_rope_fusion", "rotary embeddings are never fused", True),
    _settled("no_masked_softmax_fusion", "attention computes its softmax itself", True),
    _settled("no_gradient_accumulation_fusion", "weight gradients are never accumulated by the fused kernel", True),
    _settled(
        "gradient_accumulation_fusion",
        "the kernel is a CUDA extension of apex; here a micro-batch's weight gradient is rounded to params_dtype, "
        "then added in float32",
        False,
    ),
    _settled(
        "moe_router_load_balancing_type",
        "with moe_aux_loss_coeff 0 these choose alike; the others would route unlike the engine",
        "none",
        "aux_loss",
        "seq_aux_loss",
        "global_aux_loss",
    ),
    _settled("moe_z_loss_coeff", AUXILIARY_LOSS, 0, None),
    _settled("moe_router_bias_update_rate", "the experts' bias is frozen: the engine routes by the same one", 0),
    _settled("transformer_impl", "the layers are the portable ones, without Transformer Engine", "local"),
    _settled("fp8 fp4", "needs Transformer Engine: training is in params_dtype", None),
    _settled("cpu_offloading", "needs Transformer Engine: perf.recompute_granularity saves activations instead", False),
    _settled("cuda_graph_impl", "packed micro-batches vary in length, so no graph can be replayed", "none"),
    _settled("fp32_residual_connection", "the residual stream is in params_dtype", False),
    _settled("apply_query_key_layer_scaling", "it is for fp16 only", False),
    _settled("distribute_saved_activations", "perf.sequence_parallel shares them already", False),
    _settled("moe_shared_expert_overlap", "shared experts run before the dispatch", False),
    _settled(
        "deterministic_mode", "only the embedding would follow it, other kernels need not be deterministic", False
    ),
    _settled("mlp_chunks_for_training", "perf.max_tokens_per_gpu bounds a micro-batch already", 1),
    _settled(
        "gtp_weight_remat_size expert_gtp_weight_remat_size",
        "weights are sharded by perf.tensor_model_parallel_size and perf.expert_model_parallel_size only",
        1,
    ),
    _settled("use_te_rng_tracker", "needs Transformer Engine: the random states are Megatron's own", False),
)
"""Fields of MLATransformerConfig, and flags of Megatron's launch scripts, that change nothing."""

RecomputeModule = Literal["layernorm", "mla_up_proj", "mlp", "moe", "shared_experts"]
"""What Megatron's layers recompute; core_attn, mla_up_proj and moe_act would be up to modules that are r1hpc's own."""

PASSED: Final[Mapping[str, Any]] = {
    "moe_router_dtype": Literal["fp32"],
    "recompute_modules": Annotated[tuple[RecomputeModule, ...], Field(strict=False, min_length=1)],
    "bias_activation_fusion": bool,
    "bias_dropout_fusion": bool,
    "moe_flex_dispatcher_num_sms": PositiveInt,
    "deallocate_pipeline_outputs": bool,
    "batch_p2p_comm": bool,
    "batch_p2p_sync": bool,
    "clone_scatter_output_in_embedding": bool,
    "disable_bf16_reduced_precision_matmul": bool,
}
"""Fields that reach Megatron and act there in the portable layers too, and what each takes."""
