"""A Hugging Face checkpoint directory against its index and its model: every contradiction named, before any work."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from r1hpc.checkpoint.hf_checkpoint import INDEX, open_checkpoint
from r1hpc.errors import CheckpointError, CheckpointProblems
from r1hpc.rehearsal.tiny_model import write_tiny_model

Q_B = "model.layers.1.self_attn.q_b_proj.weight"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "tiny").directory


def weight_map(model: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((model / INDEX).read_text())["weight_map"]
    return found


def edit_tensors(model: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """Rewrite the file that holds `name`."""
    file = model / weight_map(model)[name]
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    return file


def edit_index(model: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = json.loads((model / INDEX).read_text())
    change(index["weight_map"])
    (model / INDEX).write_text(json.dumps(index))


def edit_config(model: Path, **values: object) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | values))


def problems(model: Path) -> str:
    with pytest.raises((CheckpointProblems, CheckpointError)) as caught:
        open_checkpoint(model)
    return str(caught.value)


def test_a_released_form_opens_with_every_tensor_placed(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    assert len(checkpoint.names) == 211
    assert checkpoint.has_fp8
    scale = checkpoint.scale_of(Q_B)
    assert scale is not None and scale.shape == (2, 1)
    assert checkpoint.scale_of("model.norm.weight") is None
    assert checkpoint.source_bytes(Q_B) == 192 * 64 + 2 * 4


def test_a_missing_scale_names_file_and_tensor(model: Path) -> None:
    file = edit_tensors(model, Q_B, lambda tensors: tensors.pop(f"{Q_B}_scale_inv"))
    edit_index(model, lambda names: names.pop(f"{Q_B}_scale_inv"))
    assert f"{file}: {Q_B} is fp8 and its _scale_inv [2, 1] is missing" in problems(model)


def test_scales_of_another_shape_or_dtype_are_refused(model: Path) -> None:
    name = f"{Q_B}_scale_inv"
    edit_tensors(model, name, lambda tensors: tensors.update({name: torch.ones(3, 1)}))
    assert f"{name} has shape [3, 1]; [192, 64] in blocks of 128 x 128 has [2, 1]" in problems(model)
    edit_tensors(model, name, lambda tensors: tensors.update({name: torch.ones(2, 1).bfloat16()}))
    assert f"{name} is BF16; scales are F32" in problems(model)


def test_a_shape_that_the_configuration_does_not_ask_for_is_refused(model: Path) -> None:
    name = "model.norm.weight"
    file = edit_tensors(model, name, lambda tensors: tensors.update({name: torch.ones(127).bfloat16()}))
    assert f"{file}: {name} has shape [127]; config.json asks for [128]" in problems(model)


def test_a_dtype_that_would_lose_numbers_is_refused(model: Path) -> None:
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    edit_tensors(model, bias, lambda tensors: tensors.update({bias: tensors[bias].bfloat16()}))
    assert f"{bias} is BF16; it must be F32" in problems(model)


def test_a_missing_file_and_a_cut_one_are_both_named(model: Path) -> None:
    first, second = sorted(set(weight_map(model).values()))[:2]
    (model / first).unlink()
    os.truncate(model / second, (model / second).stat().st_size - 5)
    text = problems(model)
    assert f"{first}: cannot be read" in text
    assert f"{second}: has" in text and "cut short within" in text


def test_a_tensor_that_is_nowhere_or_elsewhere_is_named(model: Path) -> None:
    file = edit_tensors(model, Q_B, lambda tensors: tensors.pop(Q_B))
    assert f"{file}: has no {Q_B}, which {INDEX} places there" in problems(model)
    edit_index(model, lambda names: names.pop(Q_B))
    assert f"{Q_B} [192, 64] is missing; config.json asks for it" in problems(model)


def test_a_tensor_in_two_files_or_outside_of_the_index_is_named(model: Path) -> None:
    name = "model.norm.weight"
    other = next(other for other, file in weight_map(model).items() if file != weight_map(model)[name])
    edit_tensors(model, other, lambda tensors: tensors.update({name: torch.ones(128).bfloat16()}))
    assert f"{name} is also in" in problems(model)


def test_a_tensor_of_another_model_is_refused(model: Path) -> None:
    name = "model.layers.1.self_attn.k_norm.weight"
    edit_tensors(model, Q_B, lambda tensors: tensors.update({name: torch.ones(4).bfloat16()}))
    edit_index(model, lambda names: names.update({name: names[Q_B]}))
    assert f"{name} belongs to no weight of the model that config.json describes" in problems(model)


def test_many_problems_are_cut_to_twenty_and_counted(model: Path) -> None:
    edit_config(model, hidden_size=64)
    text = problems(model)
    assert len(text.splitlines()) == 22
    assert text.splitlines()[-1].strip().endswith("more")


def test_other_blocks_and_other_fp8_formats_are_refused(model: Path) -> None:
    quantization = {"quant_method": "fp8", "fmt": "e5m2", "weight_block_size": [128, 128]}
    edit_config(model, quantization_config=quantization)
    assert "quantization_config.fmt is 'e5m2'" in problems(model)
    edit_config(model, quantization_config=quantization | {"fmt": "e4m3", "weight_block_size": [64, 64]})
    assert "weight_block_size is [64, 64]; supported: [128, 128]" in problems(model)


def test_no_index_is_an_error_but_for_a_single_file(model: Path, tmp_path: Path) -> None:
    (model / INDEX).unlink()
    assert f"{model / INDEX}: is not there" in problems(model)
    single = write_tiny_model(tmp_path / "single", shards=1).directory
    (file,) = single.glob("*.safetensors")
    file.rename(single / "model.safetensors")
    (single / INDEX).unlink()
    assert len(open_checkpoint(single).names) == 211


def test_another_revision_in_the_same_place_has_another_identity(model: Path, tmp_path: Path) -> None:
    before = open_checkpoint(model).identity
    assert open_checkpoint(model).identity == before
    file = model / sorted(set(weight_map(model).values()))[0]
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    os.utime(file, (1, 1))
    assert open_checkpoint(model).identity != before
