"""config.json, layout and settings to Megatron's config: every field, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from r1hpc.config import load_config
from r1hpc.model.config import ModelConfigError, transformer_config
from r1hpc.model.parallel import Layout, LayoutError
from r1hpc.model.settings import TrainSettings
from tests.model.configs import hugging_face

ROOT = Path(__file__).parents[2]
Values = dict[str, Any]


def refusal(hf: Values, layout: Layout | None = None, **settings: Any) -> list[str]:
    with pytest.raises(ModelConfigError) as refused:
        transformer_config(hf, layout or Layout(), TrainSettings(**settings))
    return refused.value.problems


R1 = {
    "num_layers": 61,
    "mtp_num_layers": None,
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "ffn_hidden_size": 18432,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_head_dim": 128,
    "qk_pos_emb_head_dim": 64,
    "v_head_dim": 128,
    "rope_type": "yarn",
    "rotary_base": 10000.0,
    "rotary_scaling_factor": 40.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "layernorm_epsilon": 1e-6,
    "normalization": "RMSNorm",
    "qk_layernorm": True,
    "gated_linear_unit": True,
    "activation_func": torch.nn.functional.silu,
    "add_bias_linear": False,
    "num_moe_experts": 256,
    "moe_ffn_hidden_size": 2048,
    "moe_shared_expert_intermediate_size": 2048,
    "moe_layer_freq": [0] * 3 + [1] * 58,
    "moe_router_topk": 8,
    "moe_router_num_groups": 8,
    "moe_router_group_topk": 4,
    "moe_router_score_function": "sigmoid",
    "moe_router_enable_expert_bias": True,
    "moe_router_topk_scaling_factor": 2.5,
}
TINY = R1 | {
    "num_layers": 5,
    "hidden_size": 128,
    "num_attention_heads": 4,
    "ffn_hidden_size": 256,
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_head_dim": 32,
    "qk_pos_emb_head_dim": 16,
    "v_head_dim": 32,
    "original_max_position_embeddings": 64,
    "num_moe_experts": 8,
    "moe_ffn_hidden_size": 64,
    "moe_shared_expert_intermediate_size": 64,
    "moe_layer_freq": [0] + [1] * 4,
    "moe_router_topk": 2,
    "moe_router_num_groups": 2,
    "moe_router_group_topk": 1,
}
TRAINING = {
    "calculate_per_token_loss": True,
    "variable_seq_lengths": True,
    "moe_aux_loss_coeff": 0.0,
    "moe_router_bias_update_rate": 0.0,
    "moe_router_dtype": "fp32",
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "perform_initialization": False,
    "moe_token_dispatcher_type": "alltoall",
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "apply_rope_fusion": False,
}


@pytest.mark.parametrize(
    ("config", "model", "expected"),
    [("configs/r1.yaml", "deepseek-r1", R1), ("tests/pipeline.yaml", "tiny-r1", TINY)],
    ids=["r1", "tiny"],
)
def test_every_field_of_the_shipped_models(config: str, model: str, expected: Values) -> None:
    settings = load_config(ROOT / config).config
    built = transformer_config(
        hugging_face(model),
        Layout.of(settings.perf),
        TrainSettings.of(settings.perf, settings.megatron, settings.hosts.device),
    )
    for name, value in (expected | TRAINING).items():
        assert getattr(built, name) == value, name


def test_layout_precision_and_recomputation_of_the_recipe() -> None:
    config = load_config(ROOT / "configs/r1.yaml").config
    settings = TrainSettings.of(config.perf, config.megatron, config.hosts.device)
    built = transformer_config(hugging_face("deepseek-r1"), Layout.of(config.perf), settings)
    expected = {
        "tensor_model_parallel_size": 8,
        "sequence_parallel": True,
        "pipeline_model_parallel_size": 4,
        "num_layers_in_first_pipeline_stage": None,
        "num_layers_in_last_pipeline_stage": 13,
        "context_parallel_size": 4,
        "expert_model_parallel_size": 32,
        "expert_tensor_parallel_size": 1,
        "params_dtype": torch.bfloat16,
        "pipeline_dtype": torch.bfloat16,
        "bf16": True,
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 1,
        # Megatron compiles it, which pays on a GPU.
        "bias_activation_fusion": True,
        # There is neither a bias nor dropout.
        "bias_dropout_fusion": False,
    }
    for name, value in expected.items():
        assert getattr(built, name) == value, name


def test_plain_rope_has_no_scaling_factor() -> None:
    built = transformer_config(hugging_face("tiny-r1", rope_scaling=None), Layout(), TrainSettings())
    assert (built.rope_type, built.rotary_scaling_factor, built.rotary_base) == ("rope", 1.0, 10000.0)


def test_full_query_projection() -> None:
    built = transformer_config(hugging_face("tiny-r1", q_lora_rank=None), Layout(), TrainSettings())
    assert built.q_lora_rank is None


def test_every_problem_of_a_config_json_is_reported_at_once() -> None:
    yarn = hugging_face("tiny-r1")["rope_scaling"]
    hf = hugging_face(
        "tiny-r1",
        scoring_func="softmax",
        rms_norm_eps=None,
        num_key_value_heads=1,
        rope_scaling={**yarn, "factor": "40", "truncate": False},
        vocab_size=321,
    )
    assert refusal(hf, Layout(tp=2, pp=2, ep=3)) == [
        "config.json: scoring_func is 'softmax'; supported: 'sigmoid'",
        "config.json: num_key_value_heads is 1, but latent attention has a key for each of the num_attention_heads = 4",
        "config.json: rms_norm_eps is missing",
        "config.json: rope_scaling has truncate; supported: type, factor, original_max_position_embeddings, beta_fast,"
        " beta_slow, mscale, mscale_all_dim",
        "config.json: rope_scaling.factor is '40'; it must be a positive number",
        "perf.tensor_model_parallel_size: vocab_size = 321 is no multiple of 2",
        "perf.expert_model_parallel_size: n_routed_experts = 8 is no multiple of 3",
        "perf.pipeline_model_parallel_size is 2: 5 layers cannot be shared evenly by 2 stages; a last stage of 1 or 2"
        " layers would",
    ]


def test_missing_sizes_are_reported_together() -> None:
    hf = hugging_face("tiny-r1")
    del hf["kv_lora_rank"], hf["v_head_dim"]
    assert refusal(hf) == ["config.json: kv_lora_rank is missing", "config.json: v_head_dim is missing"]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"num_experts_per_tok": 4},
            "num_experts_per_tok // topk_group = 4 // 1 = 4; it must be 2: the released model scores a group by its"
            " best 2 experts, Megatron by its best num_experts_per_tok // topk_group",
        ),
        ({"n_group": 3}, "n_routed_experts = 8 cannot be dealt to n_group = 3 groups"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True; supported: False"),
        (
            {"rope_scaling": {"type": "linear"}},
            "rope_scaling has type 'linear'; supported: 'yarn', or rope_scaling null",
        ),
    ],
)
def test_a_model_that_megatron_would_compute_otherwise_is_refused(changes: Values, problem: str) -> None:
    assert refusal(hugging_face("tiny-r1", **changes)) == [f"config.json: {problem}"]


@pytest.mark.parametrize(
    ("megatron", "problem"),
    [
        ({"hidden_size": 256}, "megatron.hidden_size is 256, but config.json gives 128; leave it out"),
        ({"context_parallel_size": 2}, "megatron.context_parallel_size is 2, but perf gives 1; leave it out"),
        (
            {"variable_seq_lengths": False},
            "megatron.variable_seq_lengths is False, but training here needs True; leave it out",
        ),
        (
            {"gradient_accumulation_fusion": True},
            "megatron.gradient_accumulation_fusion is True, but the portable layers have False; leave it out",
        ),
        ({"hiden_size": 1}, "megatron.hiden_size is no field of the installed Megatron's MLATransformerConfig"),
    ],
)
def test_an_explicit_value_that_contradicts_a_derived_one_is_refused_naming_both(
    megatron: Values, problem: str
) -> None:
    assert refusal(hugging_face("tiny-r1"), megatron=megatron) == [problem]


def test_explicit_values_that_contradict_nothing_are_taken() -> None:
    settings = TrainSettings(megatron={"hidden_size": 128, "batch_p2p_comm": False, "bias_dropout_fusion": True})
    built = transformer_config(hugging_face("tiny-r1"), Layout(), settings)
    assert (built.hidden_size, built.batch_p2p_comm, built.bias_dropout_fusion) == (128, False, True)


@pytest.mark.parametrize("name", ["attention_dropout", "hidden_dropout", "moe_aux_loss_coeff"])
def test_training_is_without_dropout_and_auxiliary_loss_only(name: str) -> None:
    (problem,) = refusal(hugging_face("tiny-r1"), megatron={name: 0.1})
    assert problem == f"megatron.{name} is 0.1, but training here needs 0.0; leave it out"


def test_selective_recomputation_names_modules_that_are_ours() -> None:
    hf = hugging_face("tiny-r1")
    (unnamed,) = refusal(hf, recompute_granularity="selective")
    assert "without megatron.recompute_modules" in unnamed
    (upstreams,) = refusal(
        hf, recompute_granularity="selective", megatron={"recompute_modules": ["mlp", "moe_act", "core_attn"]}
    )
    assert upstreams == (
        "megatron.recompute_modules has moe_act, core_attn; supported: layernorm, mla_up_proj, mlp, moe, shared_experts"
    )


def test_what_megatron_itself_refuses_is_an_error_of_ours() -> None:
    (problem,) = refusal(hugging_face("tiny-r1"), megatron={"fp8_param": True})
    assert problem == "Megatron refuses the model: fp8_param must be used together with fp8 mode."


def test_layouts_that_the_modules_cannot_do_are_refused() -> None:
    perf = load_config(ROOT / "tests/pipeline.yaml").config.perf
    with pytest.raises(LayoutError) as refused:
        Layout.of(perf.model_copy(update={"expert_tensor_parallel_size": 2, "sequence_parallel": False}))
    assert [problem.partition(":")[0] for problem in refused.value.problems] == [
        "perf.expert_tensor_parallel_size is 2; it must be 1",
        "perf.sequence_parallel is false with perf.tensor_model_parallel_size 2; it must be true",
    ]


def test_a_world_that_the_layout_does_not_divide_is_refused_with_the_arithmetic() -> None:
    layout = Layout(tp=2, pp=2, cp=2, ep=3)
    assert layout.data_parallel_sizes(24) == (3, 4)
    with pytest.raises(LayoutError) as refused:
        layout.data_parallel_sizes(20)
    assert refused.value.problems == [
        "tp * cp * pp = 2 * 2 * 2 = 8 does not divide the 20 processes of the world",
        "ep * pp = 3 * 2 = 6 does not divide the 20 processes of the world",
    ]
