"""Hugging Face config.json -> Megatron's MLATransformerConfig: nothing about the model is typed twice."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from megatron.core.transformer import MLATransformerConfig

from r1hpc.errors import ProblemsError
from r1hpc.model.dispatcher import choose_dispatcher, deepep_installed
from r1hpc.model.hf_values import HfValues, Yarn, read_hf_values
from r1hpc.model.parallel import Layout, LayoutError
from r1hpc.model.settings import TrainSettings
from r1hpc.plan.model_shape import ModelShape, ModelShapeError, model_shape

log = logging.getLogger(__name__)

Fields = dict[str, object]

RECOMPUTED = ("layernorm", "mla_up_proj", "mlp", "moe", "shared_experts")
"""Of Megatron's recompute_modules; the others are up to upstream's attention and experts."""


class ModelConfigError(ProblemsError):
    """A model that cannot be built as asked: every problem of config.json, layout and `megatron:` values."""

    heading = "model problem"


def transformer_config(hf: Mapping[str, Any], layout: Layout, settings: TrainSettings) -> MLATransformerConfig:
    """Megatron's config for a model, every field of it derived from config.json, layout and settings.

    hf: the values of config.json. Logs a notice where DeepEP is asked for and not there.
    Raises ModelConfigError with all problems, those of `megatron:` values that contradict a derived one included.
    """
    try:
        shape = model_shape(hf, Path("config.json"))
    except ModelShapeError as error:
        raise ModelConfigError(error.problems) from error
    values, problems = read_hf_values(hf, shape)
    problems = [f"config.json: {problem}" for problem in problems]
    problems += _layout_problems(shape, layout)
    transport = _transport(settings, layout, problems)
    derived = {
        "config.json gives": _model_fields(shape, values),
        "perf gives": _layout_fields(layout) | _recompute_fields(settings),
        "the settings give": _precision_fields(settings) | transport,
        "training here needs": _training_fields(),
        "the portable layers have": PORTABLE,
    }
    chosen = _explicit_fields(settings, derived, problems)
    problems += _choice_problems(settings, derived, chosen)
    if problems:
        raise ModelConfigError(problems)
    return _build(derived, chosen)


def _model_fields(shape: ModelShape, values: HfValues) -> Fields:
    grouped = values.num_groups > 1
    return {
        "num_layers": shape.num_layers,
        # Training builds no multi-token-prediction layer: its loss is no part of GRPO.
        "mtp_num_layers": None,
        "hidden_size": shape.hidden_size,
        "num_attention_heads": shape.num_heads,
        "ffn_hidden_size": shape.intermediate_size,
        "multi_latent_attention": True,
        "q_lora_rank": shape.q_lora_rank,
        "kv_lora_rank": shape.kv_lora_rank,
        "qk_head_dim": shape.qk_nope_head_dim,
        "qk_pos_emb_head_dim": shape.qk_rope_head_dim,
        "v_head_dim": shape.v_head_dim,
        "qk_layernorm": True,
        "normalization": "RMSNorm",
        "layernorm_epsilon": float(values.rms_norm_eps),
        "gated_linear_unit": True,
        "activation_func": torch.nn.functional.silu,
        "add_bias_linear": False,
        "num_moe_experts": shape.num_experts,
        "moe_ffn_hidden_size": shape.moe_intermediate_size,
        "moe_shared_expert_intermediate_size": shape.shared_intermediate_size or None,
        "moe_layer_freq": [0] * shape.num_dense_layers + [1] * shape.num_moe_layers,
        "moe_router_topk": shape.num_experts_per_token,
        "moe_router_num_groups": values.num_groups if grouped else None,
        "moe_router_group_topk": values.groups_per_token if grouped else None,
        "moe_router_topk_scaling_factor": float(values.routed_scaling_factor),
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": shape.router_bias,
        **_rope_fields(float(values.rope_theta), values.yarn),
    }


def _rope_fields(theta: float, yarn: Yarn | None) -> Fields:
    # Megatron's plain rope still multiplies by mscale of the scaling factor, whose default is 40: it must be 1.
    if yarn is None:
        return {"rope_type": "rope", "rotary_base": theta, "rotary_percent": 1.0, "rotary_scaling_factor": 1.0}
    return {
        "rope_type": "yarn",
        "rotary_base": theta,
        "rotary_scaling_factor": float(yarn.factor),
        "original_max_position_embeddings": yarn.original_max_position_embeddings,
        "beta_fast": float(yarn.beta_fast),
        "beta_slow": float(yarn.beta_slow),
        "mscale": float(yarn.mscale),
        "mscale_all_dim": float(yarn.mscale_all_dim),
    }


def _layout_fields(layout: Layout) -> Fields:
    return {
        "tensor_model_parallel_size": layout.tp,
        "sequence_parallel": layout.sequence_parallel,
        "pipeline_model_parallel_size": layout.pp,
        "num_layers_in_first_pipeline_stage": layout.first_layers if layout.pp > 1 else None,
        "num_layers_in_last_pipeline_stage": layout.last_layers if layout.pp > 1 else None,
        "context_parallel_size": layout.cp,
        "expert_model_parallel_size": layout.ep,
        "expert_tensor_parallel_size": 1,
    }


def _recompute_fields(settings: TrainSettings) -> Fields:
    return {
        "recompute_granularity": settings.recompute_granularity,
        "recompute_method": settings.recompute_method,
        "recompute_num_layers": settings.recompute_num_layers,
    }


def _precision_fields(settings: TrainSettings) -> Fields:
    return {
        "params_dtype": settings.dtype,
        "pipeline_dtype": settings.dtype,
        "bf16": settings.dtype == torch.bfloat16,
    }


def _transport(settings: TrainSettings, layout: Layout, problems: list[str]) -> Fields:
    try:
        dispatcher = choose_dispatcher(settings, layout, deepep_installed())
    except ValueError as error:
        problems.append(str(error))
        return {}
    if dispatcher.notice:
        log.warning("%s", dispatcher.notice)
    found: Fields = {"moe_token_dispatcher_type": dispatcher.kind}
    return found | ({"moe_flex_dispatcher_backend": "deepep"} if dispatcher.kind == "flex" else {})


def _training_fields() -> Fields:
    return {
        # Our loss does both normalizations; Megatron only divides by what it is told.
        "calculate_per_token_loss": True,
        "variable_seq_lengths": True,
        # The same for every policy whose log-probs are compared (r1hpc.config.trainer_rules refuses anything else).
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "moe_aux_loss_coeff": 0.0,
        "moe_router_load_balancing_type": "none",
        # The bias that balances the experts' load stays as released.
        "moe_router_bias_update_rate": 0.0,
        # Weights come from a checkpoint.
        "perform_initialization": False,
        "use_cpu_initialization": False,
    }


PORTABLE: Fields = dict.fromkeys(
    ("gradient_accumulation_fusion", "persist_layer_norm", "masked_softmax_fusion", "apply_rope_fusion"), False
)
"""Of apex, or of upstream's attention: neither is used."""


def _explicit_fields(settings: TrainSettings, derived: Mapping[str, Fields], problems: list[str]) -> Fields:
    """Fields that may be chosen: our defaults for the device, then those of `megatron:` that contradict nothing."""
    on_gpu = settings.device == "cuda"
    chosen: Fields = {
        # torch.compile'd by Megatron: worth it on a GPU only.
        "bias_activation_fusion": on_gpu,
        # Without dropout and biases an addition is left, nothing to fuse; torch.compile meets its limit of variants.
        "bias_dropout_fusion": False,
        # Close scores must not tie, nor be rounded unlike the engine's.
        "moe_router_dtype": "fp32",
        "batch_p2p_comm": True,
        "deallocate_pipeline_outputs": True,
    }
    known = {field.name for field in fields(MLATransformerConfig)}
    for name, value in settings.megatron.items():
        source = next((source for source, found in derived.items() if name in found), None)
        if source is not None and value != derived[source][name]:
            problems.append(f"megatron.{name} is {value!r}, but {source} {derived[source][name]!r}; leave it out")
        elif source is None and name not in known:
            problems.append(f"megatron.{name} is no field of the installed Megatron's MLATransformerConfig")
        elif source is None:
            chosen[name] = list(value) if isinstance(value, tuple) else value
    return chosen


def _choice_problems(settings: TrainSettings, derived: Mapping[str, Fields], chosen: Fields) -> list[str]:
    """What chosen fields cannot be beside the others."""
    problems = []
    flex = any(found.get("moe_token_dispatcher_type") == "flex" for found in derived.values())
    if flex and chosen["moe_router_dtype"] != "fp32":
        problems.append(
            f"megatron.moe_router_dtype is {chosen['moe_router_dtype']}; it must be fp32 with"
            " moe_token_dispatcher_type: flex: DeepEP carries float32 probabilities only"
        )
    if settings.recompute_granularity != "selective":
        return problems
    modules = chosen.get("recompute_modules")
    supported = ", ".join(RECOMPUTED)
    if not isinstance(modules, list) or not modules:
        problems.append(
            "perf.recompute_granularity is selective without megatron.recompute_modules: Megatron's default, core_attn,"
            f" is upstream's attention; name some of {supported}"
        )
    elif others := [str(module) for module in modules if module not in RECOMPUTED]:
        problems.append(f"megatron.recompute_modules has {', '.join(others)}; supported: {supported}")
    return problems


def _layout_problems(shape: ModelShape, layout: Layout) -> list[str]:
    """What cannot be divided."""
    by_tp = {
        "num_attention_heads": shape.num_heads,
        "vocab_size": shape.vocab_size,
        "intermediate_size": shape.intermediate_size,
        "moe_intermediate_size * n_shared_experts": shape.shared_intermediate_size,
    }
    problems = [
        f"perf.tensor_model_parallel_size: {name} = {size} is no multiple of {layout.tp}"
        for name, size in by_tp.items()
        if size % layout.tp
    ]
    if shape.num_experts % layout.ep:
        problems.append(
            f"perf.expert_model_parallel_size: n_routed_experts = {shape.num_experts} is no multiple of {layout.ep}"
        )
    try:
        layout.layers_of_stages(shape.num_layers)
    except LayoutError as error:
        problems += error.problems
    return problems


def _build(derived: Mapping[str, Fields], chosen: Fields) -> MLATransformerConfig:
    values = {name: value for found in (*derived.values(), chosen) for name, value in found.items()}
    try:
        return MLATransformerConfig(**values)
    except (ValueError, AssertionError) as error:
        raise ModelConfigError([f"Megatron refuses the model: {error}"]) from error
