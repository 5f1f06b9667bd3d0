"""The engine's log-probs against transformers', in float32 on the same tiny R1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from r1hpc.rollout.guard import authorization
from tests.rollout.conftest import ENGINE_KEY

PROMPTS = [[1, 5, 6, 7, 8], [1, *range(40, 61)], [1]]
TOKENS = 48
CLOSE = 1e-4


@pytest.fixture(scope="module")
def reference(tiny_checkpoint: Path) -> Any:
    """transformers' model of the checkpoint that the server started from."""
    return AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)


@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_logprobs_are_those_of_the_distribution_that_was_sampled_from(
    engine_url: str, reference: Any, temperature: float
) -> None:
    sampling = {"temperature": temperature, "max_new_tokens": TOKENS, "ignore_eos": True}
    body = {"input_ids": PROMPTS, "sampling_params": sampling, "return_logprob": True}
    replies = httpx.post(
        f"{engine_url}/generate", json=body, headers=authorization(ENGINE_KEY), timeout=120, trust_env=False
    ).json()
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        logprobs, tokens, _ = zip(*reply["meta_info"]["output_token_logprobs"], strict=True)
        assert list(tokens) == reply["output_ids"]
        assert len(tokens) == TOKENS
        expected = response_logprobs(reference, prompt, list(tokens), temperature)
        assert (torch.tensor(logprobs) - expected).abs().max().item() < CLOSE
        # Not by accident: those of another temperature are far off.
        other = response_logprobs(reference, prompt, list(tokens), 0.9)
        assert (torch.tensor(logprobs) - other).abs().max().item() > 100 * CLOSE


def response_logprobs(model: Any, prompt: list[int], response: list[int], temperature: float) -> Tensor:
    """[R] log-probs of the response's tokens under logits / temperature."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits / temperature, dim=-1)[torch.arange(len(response)), response]
