"""Reading config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from r1hpc.plan import ModelShape, ModelShapeError, read_model_shape

ROOT = Path(__file__).parents[2]


@pytest.fixture
def values() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((ROOT / "configs/models/deepseek-r1/config.json").read_text())
    return loaded


def write(directory: Path, values: object) -> Path:
    path = directory / "config.json"
    path.write_text(json.dumps(values))
    return path


def test_r1_is_read_from_a_file_or_its_directory(r1_shape: ModelShape) -> None:
    assert read_model_shape(ROOT / "configs/models/deepseek-r1") == r1_shape
    assert (r1_shape.num_layers, r1_shape.num_dense_layers, r1_shape.num_moe_layers) == (61, 3, 58)
    assert (r1_shape.num_experts, r1_shape.num_experts_per_token, r1_shape.num_mtp_layers) == (256, 8, 1)
    assert (r1_shape.qk_head_dim, r1_shape.latent_width) == (192, 576)
    assert r1_shape.fp8_block == (128, 128)
    assert r1_shape.router_bias


def test_a_bf16_copy_has_no_blocks(tmp_path: Path, values: dict[str, Any]) -> None:
    del values["quantization_config"]
    assert read_model_shape(write(tmp_path, values)).fp8_block is None


def test_queries_without_low_rank(tmp_path: Path, values: dict[str, Any]) -> None:
    values["q_lora_rank"] = None
    assert read_model_shape(write(tmp_path, values)).q_lora_rank is None


def test_every_problem_is_told_at_once(tmp_path: Path, values: dict[str, Any]) -> None:
    del values["hidden_size"]
    values |= {"model_type": "llama", "num_hidden_layers": "61", "vocab_size": 0}
    path = write(tmp_path, values)
    with pytest.raises(ModelShapeError) as caught:
        read_model_shape(path)
    assert caught.value.problems == [
        f"{path}: model_type is 'llama'; supported: 'deepseek_v3'",
        f"{path}: hidden_size is missing",
        f"{path}: num_hidden_layers is '61'; it must be a whole number of at least 1",
        f"{path}: vocab_size is 0; it must be a whole number of at least 1",
        f"{path}: first_k_dense_replace is 3, more than num_hidden_layers = 1",
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [("{", "is not JSON"), ("[1]", "holds a list; a config.json is one JSON object"), (None, "No such file")],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ModelShapeError, match=words) as caught:
        read_model_shape(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        (["fp8"], r"quantization_config is \['fp8'\]; it must be an object, or left out"),
        ("fp8", "quantization_config is 'fp8'; it must be an object, or left out"),
        ({"quant_method": "fp8", "weight_block_size": ["a", "b"]}, r"weight_block_size \['a', 'b'\]; supported: fp8"),
        ({"quant_method": "fp8", "weight_block_size": [0, 0]}, r"weight_block_size \[0, 0\]; supported: fp8"),
        ({"quant_method": "fp8", "weight_block_size": [None, 128]}, r"weight_block_size \[None, 128\]; supported: fp8"),
        ({"quant_method": "fp8", "weight_block_size": [True, 128]}, r"weight_block_size \[True, 128\]; supported: fp8"),
        ({"quant_method": "fp8", "weight_block_size": [128]}, r"weight_block_size \[128\]; supported: fp8"),
    ],
)
def test_a_malformed_quantisation_is_named(
    tmp_path: Path, values: dict[str, Any], quantization: object, words: str
) -> None:
    values["quantization_config"] = quantization
    with pytest.raises(ModelShapeError, match=words):
        read_model_shape(write(tmp_path, values))


def test_another_quantisation_is_refused(tmp_path: Path, values: dict[str, Any]) -> None:
    values["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(ModelShapeError, match="quant_method 'gptq' and weight_block_size None; supported: fp8"):
        read_model_shape(write(tmp_path, values))
