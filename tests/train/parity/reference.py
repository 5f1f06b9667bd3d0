"""GRPO once more: on transformers' model, sample by sample, as plainly as the papers say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import DeepseekV3ForCausalLM

from r1hpc.types import Sample


@dataclass(frozen=True)
class Choices:
    """The knobs of the loss."""

    temperature: float = 1.0
    eps_clip: float = 0.2
    eps_clip_high: float = 0.28
    kl_loss_coef: float = 0.0
    entropy_coef: float = 0.0
    per_token: bool = False
    tis_clip: float | None = None


def load(directory: Path) -> DeepseekV3ForCausalLM:
    """The model in float32, gradients on."""
    return DeepseekV3ForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")


def advantages(samples: Sequence[Sample]) -> list[float]:
    """Reward minus the mean of the group, over its unbiased std + 1e-6."""
    groups: dict[int, list[float]] = {}
    for sample in samples:
        groups.setdefault(sample.group_index, []).append(sample.reward)
    found = []
    for sample in samples:
        rewards = torch.tensor(groups[sample.group_index], dtype=torch.float64)
        found.append(float((sample.reward - rewards.mean()) / (rewards.std() + 1e-6)))
    return found


def response_logprobs(model: DeepseekV3ForCausalLM, sample: Sample, temperature: float) -> tuple[Tensor, Tensor]:
    """[R] log-probs of the response tokens, and [R] entropies of the distributions that they came from."""
    tokens = torch.from_numpy(sample.tokens).long()
    logits = model(tokens[None]).logits[0].float() / temperature
    begin = len(tokens) - sample.response_len
    distribution = logits[begin - 1 : -1].log_softmax(-1)
    entropy = -(distribution.exp() * distribution).sum(-1)
    return distribution.gather(-1, tokens[begin:, None])[:, 0], entropy


def loss(
    model: DeepseekV3ForCausalLM,
    samples: Sequence[Sample],
    advantage: Sequence[float],
    old: Sequence[Tensor],
    ref: Sequence[Tensor],
    choices: Choices,
) -> Tensor:
    """Of one optimizer step: [R] old and reference log-probs for each sample."""
    terms, masks = [], []
    for number, sample in enumerate(samples):
        logprobs, entropy = response_logprobs(model, sample, choices.temperature)
        ratio = (logprobs - old[number]).exp()
        clipped = ratio.clamp(1 - choices.eps_clip, 1 + choices.eps_clip_high)
        term = -torch.minimum(ratio * advantage[number], clipped * advantage[number])
        if choices.tis_clip is not None:
            assert sample.rollout_logprobs is not None
            weight = (old[number] - torch.from_numpy(sample.rollout_logprobs)).exp().clamp(max=choices.tis_clip)
            term = term * weight
        difference = logprobs - ref[number]
        term = term + choices.kl_loss_coef * ((-difference).exp() - 1 + difference).clamp(-10, 10)
        term = term - choices.entropy_coef * entropy
        terms.append(term)
        full = torch.ones(sample.response_len, dtype=torch.bool)
        masks.append(full if sample.loss_mask is None else torch.from_numpy(sample.loss_mask))
    if choices.per_token:
        total = sum((term * mask).sum() for term, mask in zip(terms, masks, strict=True))
        return torch.as_tensor(total / sum(int(mask.sum()) for mask in masks))
    means = [(term * mask).sum() / max(1, int(mask.sum())) for term, mask in zip(terms, masks, strict=True)]
    return torch.stack(means).mean()


def gradients(model: DeepseekV3ForCausalLM) -> Mapping[str, Tensor]:
    """By the model's own parameter names."""
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@torch.no_grad()
def with_rollout_logprobs(model: DeepseekV3ForCausalLM, samples: Sequence[Sample]) -> list[Sample]:
    """The samples as if an engine a little off this model had generated them."""
    noise = torch.Generator().manual_seed(0)
    found = []
    for sample in samples:
        logprobs, _ = response_logprobs(model, sample, 1.0)
        drawn = (logprobs + 0.3 * torch.randn(len(logprobs), generator=noise)).clamp(max=-1e-3)
        found.append(replace(sample, rollout_logprobs=drawn.numpy()))
    return found
