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
_SECRET = "every attempt makes a key of its own, and no command line or configuration may have one"
_ONE_SERVER = "an engine is one HTTP server, which asks for the attempt's key: what else it would open asks for none"

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
    "api_key": _SECRET,
    "admin_api_key": _SECRET,
    "ssl_keyfile_password": _SECRET,
    "tokenizer_worker_num": _ONE_SERVER,
    "encoder_only": _ONE_SERVER,
    "grpc_mode": _ONE_SERVER,
    "smg_grpc_mode": _ONE_SERVER,
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

_REFUSED_GROUPS: Final[tuple[tuple[str, str], ...]] = (
    (
        _CONFIG_JSON,
        """activation_func_clamp_value apply_residual_connection_post_layernorm attention_output_gate glu_linear_offset
        moe_apply_probs_on_input moe_latent_size moe_mlp_glu_interleave_size moe_router_topk_limited_devices
        moe_shared_expert_gate moe_shared_expert_glu_interleave_size no_rope_freq qk_l2_norm rotary_interleaved
        softmax_scale softmax_type window_attn_skip_freq window_size""",
    ),
    (
        "it belongs to another architecture than DeepSeek-V3's",
        """dsa_indexer_head_dim dsa_indexer_k_norm_epsilon dsa_indexer_k_norm_fp32 dsa_indexer_loss_coeff
        dsa_indexer_n_heads dsa_indexer_rope_interleaved dsa_indexer_rotate_activation dsa_indexer_scoring_relu
        dsa_indexer_skip_topk_offset dsa_indexer_topk dsa_indexer_topk_freq dsa_indexer_use_sparse_loss
        dsa_kernel_backend experimental_attention_variant hetereogenous_dist_checkpoint heterogeneous_block_specs
        is_hybrid_model linear_attention_freq linear_conv_kernel_dim linear_key_head_dim linear_num_key_heads
        linear_num_value_heads linear_value_head_dim mamba_head_dim mamba_num_groups mamba_num_heads mamba_state_dim
        mamba_training_ssm_states_dtype mrope_section mup_attn_scale_power mup_base_head_dim mup_base_hidden_size
        mup_embedding_mult mup_output_mult mup_width_mult use_mamba_mem_eff_path use_mup""",
    ),
    (
        "no multi-token-prediction layer is trained",
        "mtp_hybrid_override_pattern mtp_standalone mtp_use_repeated_layer",
    ),
    (
        "generation is the engine's: see the section sglang",
        """batch_invariant_mode cache_mla_latents flash_decode inference_cuda_graph_scope
        inference_disable_triton_nvls_kernels inference_fuse_tp_communication inference_grouped_gemm_backend
        inference_moe_disable_fused_quant_kernels inference_moe_token_dispatcher_type inference_rng_tracker
        inference_sampling_seed mlp_chunks_for_prefill moe_pad_experts_for_cuda_graph_inference
        nccl_all_reduce_for_prefill symmetric_ar_type use_inference_optimized_layers""",
    ),
    (
        "the trained policy must route as the engine that sampled does: no token is dropped, no noise is added",
        """moe_expert_capacity_factor moe_expert_rank_capacity_factor moe_input_jitter_eps
        moe_pad_expert_input_to_capacity moe_router_force_biased moe_router_force_load_balancing
        moe_router_quantile_balancing_ema moe_token_dropping""",
    ),
    ("a rollout brings no record of its routes", "moe_enable_routing_replay"),
    (
        "needs Transformer Engine or kitchen: training is in params_dtype",
        """activation_func_fp8_input_store first_last_layers_bf16 fp4_param fp4_quantizer_factory fp4_recipe
        fp8_amax_compute_algo fp8_amax_history_len fp8_dot_product_attention fp8_interval fp8_margin
        fp8_multi_head_attention fp8_output_proj fp8_param fp8_quantizer_factory fp8_recipe fp8_wgrad
        kitchen_attention_backend moe_router_padding_for_fp8 moe_router_padding_for_quantization
        moe_single_grouped_bias moe_single_grouped_weight num_layers_at_end_in_bf16 num_layers_at_start_in_bf16
        quant_recipe tp_only_amax_red use_grouped_gemm_for_dense_mlp use_grouped_gemm_for_shared_expert use_kitchen
        use_kitchen_attention""",
    ),
    (
        "activations are kept or recomputed, never offloaded: perf.recompute_granularity decides it",
        """activation_offload_fraction cpu_offloading_activations cpu_offloading_double_buffering
        cpu_offloading_num_layers cpu_offloading_retain_pinned_cpu_buffers cpu_offloading_weights
        delay_offload_until_cuda_graph delta_offload_bytes_across_pp_ranks fine_grained_activation_offloading
        fine_grained_offloading_max_inflight_offloads min_offloaded_tensor_size moe_paged_stash
        moe_paged_stash_buffer_size_factor_cpu moe_paged_stash_buffer_size_factor_cuda moe_paged_stash_page_size
        offload_modules""",
    ),
    (
        "packed micro-batches vary in length, so no graph can be replayed",
        """cuda_graph_modules cuda_graph_retain_backward_graph cuda_graph_scope cuda_graph_use_single_mempool
        cuda_graph_warmup_steps enable_cuda_graph external_cuda_graph""",
    ),
    ("recompute_modules: [moe] says it", "moe_layer_recompute"),
    (
        "perf.recompute_granularity decides it, for all micro-batches alike",
        "num_microbatches_with_partial_activation_checkpoints",
    ),
    (
        "attention keeps no maximum of its scores",
        "log_max_attention_logit qk_clip qk_clip_alpha qk_clip_threshold",
    ),
    (
        "of the flex dispatcher only moe_flex_dispatcher_num_sms can be tuned",
        """moe_hybridep_num_blocks_permute moe_hybridep_num_blocks_unpermute moe_hybridep_num_sms
        moe_hybridep_num_sms_preprocessing moe_hybridep_pad_uneven_dispatch_inputs moe_ncclep_static_shape
        moe_ncclep_zero_copy""",
    ),
    (
        "stages talk through NCCL on GPUs and gloo on CPU",
        "pipeline_model_parallel_comm_backend use_ring_exchange_p2p",
    ),
    (
        "it is a function or an object, which the trainer sets",
        """_cpu_offloading_context embedding_init_method experimental_attention_variant_loss_scale_func
        finalize_model_grads_func grad_scale_func grad_sync_func init_method moe_grad_scale_func mtp_grad_scale_func
        no_sync_func output_layer_init_method param_sync_func timers""",
    ),
    ("hosts.device decides where the model is built", "init_model_with_meta_device"),
    ("the run directory holds the resolved configuration", "config_logger_dir"),
    ("it is for Megatron's own tests", "test_mode"),
)
"""A reason, and the fields of MLATransformerConfig that are refused for it."""

MEGATRON_OWNED: Final = {
    **dict.fromkeys(MODEL_ARGUMENTS, _CONFIG_JSON),
    **{name: reason for reason, names in _REFUSED_GROUPS for name in names.split()},
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
