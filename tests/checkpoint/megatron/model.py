"""A GPTModel of megatron-core for a Hugging Face config.json, with modules that need neither GPU nor TE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec, get_gpt_mtp_block_spec
from megatron.core.transformer import MLATransformerConfig

from tests.checkpoint.megatron.modules import CausalAttention, LatentAttention, RMSNorm


@dataclass(frozen=True)
class Layout:
    """How a model is split; data parallelism is 1, so tp * pp * cp processes."""

    tp: int = 1
    pp: int = 1
    cp: int = 1
    ep: int = 1
    first_layers: int | None = None
    """Layers of the first pipeline stage; null: an equal share."""
    last_layers: int | None = None

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.cp

    def initialize(self) -> None:
        """Make Megatron's process groups. Collective; torch.distributed is up."""
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=self.tp,
            pipeline_model_parallel_size=self.pp,
            context_parallel_size=self.cp,
            expert_model_parallel_size=self.ep,
            expert_tensor_parallel_size=1,
            create_gloo_process_groups=False,
        )


def build(config: Mapping[str, Any], layout: Layout, dtype: torch.dtype, mtp: bool = False) -> GPTModel:
    """This rank's part of the model, weights not initialized; with its multi-token-prediction layer where asked."""
    mcore = _transformer_config(config, layout, dtype, mtp)
    block = get_gpt_decoder_block_spec(mcore, use_transformer_engine=False, normalization="RMSNorm")
    block.layer_norm = RMSNorm
    for layer in block.layer_specs:
        parts = layer.submodules
        parts.input_layernorm = parts.pre_mlp_layernorm = RMSNorm
        parts.self_attention.module = LatentAttention
        attention = parts.self_attention.submodules
        attention.q_layernorm = attention.kv_layernorm = RMSNorm
        attention.core_attention = CausalAttention
    mtp_block = get_gpt_mtp_block_spec(mcore, block, use_transformer_engine=False) if mtp else None
    for layer in mtp_block.layer_specs if mtp_block else ():
        layer.submodules.enorm = layer.submodules.hnorm = layer.submodules.layer_norm = RMSNorm
    return GPTModel(
        config=mcore,
        transformer_layer_spec=block,
        mtp_block_spec=mtp_block,
        vocab_size=config["vocab_size"],
        max_sequence_length=config["max_position_embeddings"],
        pre_process=parallel_state.is_pipeline_first_stage(),
        post_process=parallel_state.is_pipeline_last_stage(),
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
        parallel_output=False,
    )


def sharded_state(model: GPTModel) -> dict[str, Any]:
    """The model's sharded state dict in the form that checkpoints use: experts as one tensor of a layer."""
    group = parallel_state.get_data_parallel_group(with_context_parallel=True)
    state: dict[str, Any] = model.sharded_state_dict(metadata={"dp_cp_group": group, "singleton_local_shards": False})
    return state


def _transformer_config(
    config: Mapping[str, Any], layout: Layout, dtype: torch.dtype, mtp: bool
) -> MLATransformerConfig:
    layers, dense = config["num_hidden_layers"], config["first_k_dense_replace"]
    yarn = config["rope_scaling"]
    return MLATransformerConfig(
        num_layers=layers,
        mtp_num_layers=config["num_nextn_predict_layers"] if mtp else None,
        hidden_size=config["hidden_size"],
        num_attention_heads=config["num_attention_heads"],
        ffn_hidden_size=config["intermediate_size"],
        q_lora_rank=config["q_lora_rank"],
        kv_lora_rank=config["kv_lora_rank"],
        qk_head_dim=config["qk_nope_head_dim"],
        qk_pos_emb_head_dim=config["qk_rope_head_dim"],
        v_head_dim=config["v_head_dim"],
        rope_type="yarn",
        rotary_base=config["rope_theta"],
        rotary_scaling_factor=yarn["factor"],
        original_max_position_embeddings=yarn["original_max_position_embeddings"],
        beta_fast=yarn["beta_fast"],
        beta_slow=yarn["beta_slow"],
        mscale=yarn["mscale"],
        mscale_all_dim=yarn["mscale_all_dim"],
        normalization="RMSNorm",
        qk_layernorm=True,
        layernorm_epsilon=config["rms_norm_eps"],
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        num_moe_experts=config["n_routed_experts"],
        moe_ffn_hidden_size=config["moe_intermediate_size"],
        moe_shared_expert_intermediate_size=config["moe_intermediate_size"] * config["n_shared_experts"],
        moe_layer_freq=[0] * dense + [1] * (layers - dense),
        moe_router_topk=config["num_experts_per_tok"],
        moe_router_num_groups=config["n_group"],
        moe_router_group_topk=config["topk_group"],
        moe_router_topk_scaling_factor=config["routed_scaling_factor"],
        moe_router_score_function=config["scoring_func"],
        moe_router_enable_expert_bias=config["topk_method"] == "noaux_tc",
        moe_router_load_balancing_type="none",
        moe_router_dtype="fp32",
        moe_token_dispatcher_type="alltoall",
        tensor_model_parallel_size=layout.tp,
        pipeline_model_parallel_size=layout.pp,
        num_layers_in_first_pipeline_stage=layout.first_layers,
        num_layers_in_last_pipeline_stage=layout.last_layers,
        context_parallel_size=layout.cp,
        expert_model_parallel_size=layout.ep,
        expert_tensor_parallel_size=1,
        sequence_parallel=layout.tp > 1,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        perform_initialization=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        gradient_accumulation_fusion=False,
    )
