"""The table of weights against the counts of DeepSeek-R1 and against the plan's own tables."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy
import pytest

from r1hpc.checkpoint.names import TensorName, by_key, extra_state_keys, tensors
from r1hpc.plan.model_shape import ModelShape, read_model_shape
from r1hpc.plan.parameters import model_modules, total_parameters

MODELS = Path(__file__).resolve().parents[2] / "configs" / "models"


@pytest.fixture(scope="module")
def r1() -> ModelShape:
    return read_model_shape(MODELS / "deepseek-r1" / "config.json")


@pytest.fixture(scope="module")
def r1_names(r1: ModelShape) -> tuple[TensorName, ...]:
    return tensors(r1)


@pytest.fixture(scope="module")
def tiny() -> ModelShape:
    return read_model_shape(MODELS / "tiny-r1" / "config.json")


def named(names: tuple[TensorName, ...], hf: str) -> TensorName:
    (found,) = (name for name in names if name.hf == hf)
    return found


def test_r1_has_the_tensors_and_parameters_of_the_release(r1: ModelShape, r1_names: tuple[TensorName, ...]) -> None:
    main = [name for name in r1_names if name.layer is None or name.layer < 61]
    assert len(main) == 45_395
    assert len(r1_names) - len(main) == 788
    assert sum(name.quantized for name in r1_names) == 45_808
    assert sum(math.prod(name.shape) for name in main if not name.float32) == 671_026_404_352
    assert sum(math.prod(name.shape) for name in main if name.float32) == 58 * 256


@pytest.mark.parametrize("model", ["deepseek-r1", "tiny-r1"])
def test_the_plan_counts_the_same_parameters_and_quantized_tensors(model: str) -> None:
    shape = read_model_shape(MODELS / model / "config.json")
    names, modules = tensors(shape), model_modules(shape)
    assert sum(math.prod(name.shape) for name in names if not name.float32) == total_parameters(modules.checkpoint)
    quantized = sum(count * len(module.matrices) for module, count in modules.checkpoint if module.quantized)
    assert sum(name.quantized for name in names) == quantized


def test_boxes_fill_every_megatron_tensor_exactly_once(tiny: ModelShape) -> None:
    for key, parts in by_key(tensors(tiny)).items():
        filled = numpy.zeros(parts[0].global_shape, dtype=int)
        for part in parts:
            assert part.global_shape == filled.shape, key
            filled[tuple(slice(at, at + size) for at, size in zip(part.offset, part.box, strict=True))] += 1
        assert (filled == 1).all(), key


def test_places_of_r1(r1_names: tuple[TensorName, ...]) -> None:
    up = named(r1_names, "model.layers.3.mlp.experts.5.up_proj.weight")
    assert up.key == "decoder.layers.3.mlp.experts.experts.linear_fc1.weight"
    assert (up.global_shape, up.offset, up.box) == ((256, 4096, 7168), (5, 2048, 0), (1, 2048, 7168))
    gate = named(r1_names, "model.layers.0.mlp.gate_proj.weight")
    assert (gate.key, gate.global_shape, gate.offset, gate.split_axis) == (
        "decoder.layers.0.mlp.linear_fc1.weight",
        (36864, 7168),
        (0, 0),
        0,
    )
    assert named(r1_names, "model.layers.7.self_attn.o_proj.weight").split_axis == 1
    assert named(r1_names, "model.layers.7.self_attn.kv_a_proj_with_mqa.weight").shape == (576, 7168)
    bias = named(r1_names, "model.layers.60.mlp.gate.e_score_correction_bias")
    assert (bias.key, bias.float32, bias.quantized) == ("decoder.layers.60.mlp.router.expert_bias", True, False)


def test_prediction_layer_has_its_own_names_and_two_copies(r1_names: tuple[TensorName, ...]) -> None:
    joined = named(r1_names, "model.layers.61.eh_proj.weight")
    assert (joined.key, joined.shape, joined.quantized) == ("mtp.layers.0.eh_proj.weight", (7168, 14336), False)
    inner = named(r1_names, "model.layers.61.self_attn.q_a_proj.weight")
    assert inner.key == "mtp.layers.0.transformer_layer.self_attention.linear_q_down_proj.weight"
    copies = {name.hf: (name.copy_of, name.key) for name in r1_names if name.copy_of}
    assert copies == {
        "model.layers.61.embed_tokens.weight": ("model.embed_tokens.weight", "embedding.word_embeddings.weight"),
        "model.layers.61.shared_head.head.weight": ("lm_head.weight", "output_layer.weight"),
    }


def test_transformer_engine_names_differ_for_fused_norms_alone(r1_names: tuple[TensorName, ...]) -> None:
    fused = {name.hf: name.te_key for name in r1_names if name.te_key and name.layer in (0, 3)}
    q, kv = "linear_q_up_proj.layer_norm_weight", "linear_kv_up_proj.layer_norm_weight"
    assert fused == {
        "model.layers.0.self_attn.q_a_layernorm.weight": f"decoder.layers.0.self_attention.{q}",
        "model.layers.0.self_attn.kv_a_layernorm.weight": f"decoder.layers.0.self_attention.{kv}",
        "model.layers.0.post_attention_layernorm.weight": "decoder.layers.0.mlp.linear_fc1.layer_norm_weight",
        "model.layers.3.self_attn.q_a_layernorm.weight": f"decoder.layers.3.self_attention.{q}",
        "model.layers.3.self_attn.kv_a_layernorm.weight": f"decoder.layers.3.self_attention.{kv}",
    }


def test_a_model_without_low_rank_queries_shared_experts_or_bias_has_none_of_their_names(tiny: ModelShape) -> None:
    plain = replace(tiny, q_lora_rank=None, num_shared_experts=0, router_bias=False, tied_embeddings=True)
    names = tensors(plain)
    found = {name.hf for name in names}
    assert "model.layers.1.self_attn.q_proj.weight" in found
    assert not any(
        word in name for name in found for word in ("q_a_", "q_b_", "shared_experts", "e_score", "lm_head", "head.head")
    )
    assert not any("shared_experts" in key for key in extra_state_keys(plain))
