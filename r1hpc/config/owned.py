"""Arguments of the libraries that r1hpc sets itself, and from what."""

from __future__ import annotations

from typing import Final

_HF_CHECKPOINT = "ckpt.hf_checkpoint decides it"
_ENGINE_SIZE = "rollout_num_gpus_per_engine decides it"
_ONE_STAGE = "an engine has one pipeline stage: rollout_num_gpus_per_engine decides its GPUs"
_PLACEMENT = "the placement on the nodes decides it"
_PORT_BAND = "hosts.port_base and hosts.port_span decide it"
_CONFIG_JSON = "the model's config.json decides it (ckpt.hf_checkpoint)"
_QUANTIZATION = "the quantization_config in the model's config.json decides it (ckpt.hf_checkpoint)"
_FIRST_STAGE = "perf.decoder_first_pipeline_num_layers decides it"
_LAST_STAGE = "perf.decoder_last_pipeline_num_layers decides it"
_STAGES = "perf.pipeline_model_parallel_size and perf.decoder_*_pipeline_num_layers decide the layers of each stage"
_CONTEXT = "perf.context_parallel_size decides it"
_PRECISION = "params_dtype decides it"

SGLANG_OWNED: Final = {
    "model_path": _HF_CHECKPOINT,
    "model": _HF_CHECKPOINT,
    "tokenizer_path": _HF_CHECKPOINT,
    "json_model_override_args": _CONFIG_JSON,
    "quantization": _QUANTIZATION,
    "quantize_and_serve": _QUANTIZATION,
    "modelopt_quant": _QUANTIZATION,
    "dtype": "the checkpoint decides it on GPUs, and hosts.device: cpu computes in float32",
    "device": "hosts.device decides it",
    "tp_size": _ENGINE_SIZE,
    "tp": _ENGINE_SIZE,
    "tensor_parallel_size": _ENGINE_SIZE,
    "pp_size": _ONE_STAGE,
    "pp": _ONE_STAGE,
    "pipeline_parallel_size": _ONE_STAGE,
    "attn_cp_size": "an engine shards attention by dp_size only",
    "dcp_size": "an engine shards attention by dp_size only",
    "moe_dp_size": "ep_size decides how experts are spread",
    "dwdp_size": "ep_size decides how experts are spread",
    "host": _PLACEMENT,
    "nnodes": _PLACEMENT,
    "node_rank": _PLACEMENT,
    "dist_init_addr": _PLACEMENT,
    "nccl_init_addr": _PLACEMENT,
    "base_gpu_id": _PLACEMENT,
    "gpu_id_step": _PLACEMENT,
    "use_ray": _PLACEMENT,
    "port": _PORT_BAND,
    "nccl_port": _PORT_BAND,
    "grpc_port": _PORT_BAND,
    "enable_memory_saver": "it is on wherever training and rollout share a GPU",
    "random_seed": "run.seed decides it, with another seed for each engine",
}
"""Server argument that r1hpc sets itself, and from what."""

_MODEL_ARGUMENTS = """
num_layers hidden_size ffn_hidden_size num_attention_heads num_query_groups group_query_attention kv_channels
max_position_embeddings original_max_position_embeddings vocab_size padded_vocab_size make_vocab_size_divisible_by
normalization norm_epsilon layernorm_epsilon layernorm_zero_centered_gamma position_embedding_type rotary_base
rotary_percent rotary_scaling_factor rope_type mscale mscale_all_dim beta_fast beta_slow swiglu gated_linear_unit
activation_func add_bias_linear disable_bias_linear add_qkv_bias untie_embeddings_and_output_weights
multi_latent_attention q_lora_rank kv_lora_rank qk_head_dim qk_pos_emb_head_dim v_head_dim qk_layernorm
num_experts num_moe_experts moe_layer_freq moe_ffn_hidden_size moe_shared_expert_intermediate_size moe_router_topk
moe_router_num_groups moe_router_group_topk moe_router_score_function moe_router_pre_softmax
moe_router_topk_scaling_factor moe_router_enable_expert_bias mtp_num_layers
"""
MODEL_ARGUMENTS: Final = frozenset(_MODEL_ARGUMENTS.split())
"""Megatron's arguments and fields that describe the model: all of them are derived from config.json."""

MEGATRON_OWNED: Final = dict.fromkeys(MODEL_ARGUMENTS, _CONFIG_JSON) | {
    "fp16": "params_dtype decides it, bf16 or fp32",
    "pipeline_dtype": _PRECISION,
    "autocast_dtype": _PRECISION,
    "enable_autocast": _PRECISION,
    "num_layers_in_first_pipeline_stage": _FIRST_STAGE,
    "num_layers_in_last_pipeline_stage": _LAST_STAGE,
    "pipeline_model_parallel_layout": _STAGES,
    "account_for_embedding_in_pipeline_split": _STAGES,
    "account_for_loss_in_pipeline_split": _STAGES,
    "virtual_pipeline_model_parallel_size": f"stages are not interleaved: {_STAGES}",
    "microbatch_group_size_per_vp_stage": f"stages are not interleaved: {_STAGES}",
    "hierarchical_context_parallel_sizes": _CONTEXT,
    "hybrid_context_parallel": _CONTEXT,
    "max_seqlen_per_dp_cp_rank": "perf.max_tokens_per_gpu decides it",
    "tensor_parallel_num_weight_shards": "perf.tensor_model_parallel_size decides it",
    "expert_tensor_parallel_num_weight_shards": "perf.expert_tensor_parallel_size decides it",
}
"""Megatron field that r1hpc sets itself, and from what."""
