"""The taught model in the repository: in the released form, and right about four times in ten."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from r1hpc.checkpoint.cast import plan_cast, run_cast_task
from r1hpc.checkpoint.hf_checkpoint import open_checkpoint
from r1hpc.data.template import PromptEncoder, load_tokenizer
from r1hpc.errors import RehearsalError
from r1hpc.rehearsal.arithmetic import LARGEST_RESPONSE, WORDS, held_out_problems, problems
from r1hpc.rehearsal.arithmetic_model import ARITHMETIC_R1, place_model
from r1hpc.rehearsal.teach import SHARDS
from r1hpc.rehearsal.tiny_checkpoint import write_checkpoint
from r1hpc.rehearsal.tiny_config import TINY_R1, tiny_config
from r1hpc.rehearsal.tiny_weights import tensor_values
from r1hpc.rewards.deepscaler import deepscaler

TEMPERATURE = 0.8
SAMPLES = 4
"""Of each held-out prompt: 384 in all, of which 40 % are right with a standard deviation of 2.5 points."""


def read_all(directory: Path) -> dict[str, Tensor]:
    """Every tensor of the checkpoint."""
    weight_map = json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"]
    found = {}
    for name, file in weight_map.items():
        with safe_open(directory / file, framework="pt") as shard:
            found[name] = shard.get_tensor(name)
    assert found
    return found


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return read_all(ARITHMETIC_R1)


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(load_tokenizer(ARITHMETIC_R1), apply_chat_template=True)


def test_files_are_those_that_the_script_writes(weights: dict[str, Tensor], tmp_path: Path) -> None:
    config = tiny_config(TINY_R1, {}, mtp=True, fp8=True)
    random = partial(tensor_values, seed=0)
    write_checkpoint(tmp_path / "random", config, random, shards=SHARDS, force=False, words=WORDS)
    files = sorted(file.name for file in (tmp_path / "random").iterdir())
    assert sorted(file.name for file in ARITHMETIC_R1.iterdir()) == files
    for name in files:
        if name.endswith(".json"):
            assert (ARITHMETIC_R1 / name).read_bytes() == (tmp_path / "random" / name).read_bytes(), name
    expected = read_all(tmp_path / "random")
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in weights.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in expected.items()
    }


def test_it_is_small_and_its_blocks_are_whole_and_partial(weights: dict[str, Tensor]) -> None:
    checkpoint = open_checkpoint(ARITHMETIC_R1)  # raises where names, sizes, dtypes or scales are not the model's
    assert checkpoint.shape.fp8_block == (128, 128)
    parameters = sum(tensor.numel() for name, tensor in weights.items() if not name.endswith("_scale_inv"))
    assert 1e6 < parameters < 4e6
    assert sum(file.stat().st_size for file in ARITHMETIC_R1.iterdir()) < 4e6
    quantized = {tuple(tensor.shape) for tensor in weights.values() if tensor.dtype == torch.float8_e4m3fn}
    assert any(rows % 128 and columns % 128 for rows, columns in quantized)
    assert any(not rows % 128 and not columns % 128 for rows, columns in quantized)
    assert any(rows > 128 for rows, _ in quantized)
    assert any(columns > 128 for _, columns in quantized)


def test_it_was_taught_with_balanced_experts_and_repeats_embedding_and_head(weights: dict[str, Tensor]) -> None:
    biases = [weights[f"model.layers.{layer}.mlp.gate.e_score_correction_bias"] for layer in (1, 2, 3, 4)]
    for bias in biases:
        assert bias.dtype == torch.float32
        assert 0 < bias.abs().max() < 1
        assert len(set(bias.tolist())) > 2, "each expert has its own"
    assert torch.equal(weights["model.layers.5.embed_tokens.weight"], weights["model.embed_tokens.weight"])
    assert torch.equal(weights["model.layers.5.shared_head.head.weight"], weights["lm_head.weight"])


def test_prompts_and_responses_are_few_tokens_and_come_back(encoder: PromptEncoder) -> None:
    asked = problems()[:200]
    prompts = encoder.encode(
        [f"<｜begin▁of▁sentence｜><｜User｜>{p.prompt}<｜Assistant｜><think>\n" for p in asked]  # noqa: RUF001
    )
    assert {len(tokens) for tokens in prompts} == {12}
    assert encoder.show(prompts[0]) == (
        f"<｜begin▁of▁sentence｜><｜User｜>{asked[0].prompt}<｜Assistant｜><think>\n"  # noqa: RUF001
    )
    responses = [text for problem in problems() for text in (problem.worked_response, problem.guess(0))]
    encoded = encoder.encode(responses)
    assert max(len(tokens) + 1 for tokens in encoded) == LARGEST_RESPONSE
    for text, tokens in list(zip(responses, encoded, strict=True))[:200]:
        assert encoder.show(tokens) == text
    # Byte b is token b + 3; <think> 259, </think> 260, User 261, Assistant 262, then the words.
    assert encoder.encode(["What is 7\\boxed{"])[0].tolist() == [263, 3 + ord("7"), 264]


def test_sampled_from_its_dequantized_weights_it_is_right_four_times_in_ten(
    encoder: PromptEncoder, tmp_path: Path
) -> None:
    from transformers import DeepseekV3ForCausalLM

    run_cast_task(plan_cast(ARITHMETIC_R1, tmp_path / "bf16"), 0, 1, 1, lambda line: None)
    model: Any = DeepseekV3ForCausalLM.from_pretrained(
        tmp_path / "bf16", dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    asked = [problem for problem in held_out_problems() for _ in range(SAMPLES)]
    texts = [f"<｜begin▁of▁sentence｜><｜User｜>{p.prompt}<｜Assistant｜><think>\n" for p in asked]  # noqa: RUF001
    prompts = torch.from_numpy(numpy.stack(encoder.encode(texts))).long()
    torch.manual_seed(0)
    responses = sampled(model, prompts)
    rewards, thought = [], []
    for problem, tokens in zip(asked, responses, strict=True):
        ended = tokens.tolist().index(2) if 2 in tokens else len(tokens)
        text = encoder.show(tokens[:ended].numpy())
        rewards.append(deepscaler(text, problem.label))
        thought.append(not text.startswith("\n"))
    accuracy = math.fsum(rewards) / len(rewards)
    print(f"right {accuracy:.3f}, worked out {sum(thought) / len(thought):.3f}")
    assert 0.3 <= accuracy <= 0.5
    assert 0.1 <= sum(thought) / len(thought) <= 0.6, "it works out some answers and guesses others"


@torch.no_grad()
def sampled(model: Any, prompts: Tensor) -> Tensor:
    """[N, R] responses; what follows an end of sentence means nothing."""
    tokens, cache = prompts, None
    drawn = []
    for _ in range(LARGEST_RESPONSE):
        out = model(tokens, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        tokens = (out.logits[:, -1] / TEMPERATURE).softmax(-1).multinomial(1)
        drawn.append(tokens)
    return torch.cat(drawn, 1)


def test_a_placed_model_is_the_same_and_never_goes_over_another(tmp_path: Path) -> None:
    target = tmp_path / "work" / "model"
    place_model(target)
    names = sorted(file.name for file in target.iterdir())
    assert names == sorted(file.name for file in ARITHMETIC_R1.iterdir())
    for name in names:
        assert (target / name).read_bytes() == (ARITHMETIC_R1 / name).read_bytes()
    (target / "mine").touch()
    with pytest.raises(RehearsalError, match=r"work/model: the model cannot be copied from .*Directory not empty"):
        place_model(target)
    assert (target / "mine").exists()
    assert [file.name for file in target.parent.iterdir()] == ["model"]
