"""GRPO: advantages relative to the group, and the clipped surrogate with its regularizers. Pure torch.

All quantities of tokens are [N], aligned with each other: the rows of a micro-batch that are trained on, or all of
them with a mask. They are float32; float64 stays float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from r1hpc.config.training import GrpoConfig
from r1hpc.train.normalization import MetricSums, TokenWeights, token_weights

KlKind = Literal["k1", "k2", "k3", "low_var_kl"]

LARGEST_EXPONENT = 80.0
"""exp(80) = 5.5e34 is finite in float32. exp(89) is not, and the backward of a clip that discards it is 0 * inf."""

ADVANTAGE_EPS = 1e-6
"""Added to the std of a group."""


@dataclass(frozen=True)
class LossInputs:
    """What the loss of one micro-batch on one rank is made of. Untrained tokens may hold anything, even inf."""

    logprobs: Tensor
    """[N] of the policy that is trained, with its graph."""
    advantages: Tensor
    """[N] that of the token's sample."""
    loss_mask: Tensor
    """[N] bool: trained on."""
    sample_of: Tensor
    """[N] int64: which of the S samples of the micro-batch; S in padding."""
    mask_sums: Tensor
    """[S + 1] trained tokens of each whole sample."""
    cp_rank: int
    """Context rank, whose share of the samples this is."""
    old_logprobs: Tensor | None = None
    """[N] of the policy before the update; null: those of this pass, as with one step a rollout."""
    ref_logprobs: Tensor | None = None
    """[N] of the reference; null: no KL."""
    rollout_logprobs: Tensor | None = None
    """[N] of the engine that sampled; null: it gave none."""
    entropy: Tensor | None = None
    """[N] of the policy that is trained; with its graph where entropy_coef is not 0."""


@dataclass(frozen=True)
class Loss:
    """Of one micro-batch on one rank. A step's loss is the sum of the `total`s over that of the `divisor`s."""

    total: Tensor
    """Scalar, with its graph."""
    divisor: Tensor
    """Scalar int64: samples, or trained tokens."""
    metrics: MetricSums


def group_advantages(rewards: Tensor, group_index: Tensor, *, normalize: bool, by_std: bool) -> Tensor:
    """Center each group's rewards on their mean; with `by_std` divide by their unbiased std + 1e-6.

    rewards: [N]; group_index: [N] integers, equal where samples have a prompt in common, in any order, groups of any
    sizes. Returns [N] float32; without `normalize` the rewards themselves.
    A group of one is centered to 0 and has no std to divide by; a constant group gives zeros up to rounding.
    GRPO, arXiv:2402.03300 section 4.1; by_std=False is Dr. GRPO, arXiv:2503.20783.
    """
    if not normalize:
        return rewards.float()
    groups, group_of, sizes = torch.unique(group_index, return_inverse=True, return_counts=True)

    def sums(values: Tensor) -> Tensor:
        return torch.zeros(len(groups), dtype=values.dtype, device=values.device).index_add_(0, group_of, values)

    values = rewards.double()
    centered: Tensor = values - (sums(values) / sizes)[group_of]
    if not by_std:
        return centered.float()
    variances = sums(centered.square()) / (sizes - 1).clamp(min=1)
    scaled: Tensor = centered / (variances.sqrt() + ADVANTAGE_EPS)[group_of]
    return scaled.float()


def kl_estimate(kind: KlKind, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """[N] estimates, from one sample of `logprobs`' distribution each, of its KL divergence from the reference.

    With d = logprobs - ref_logprobs: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d (http://joschu.net/blog/kl-approx.html);
    low_var_kl is k3 cut to [-10, 10].
    """
    difference: Tensor = logprobs - ref_logprobs
    if kind == "k1":
        return difference
    if kind == "k2":
        half_square: Tensor = difference.square() / 2
        return half_square
    # expm1, because exp(-d) - 1 has lost d^2 / 2 already at d = 1e-3. Where the cut to 10 is certain, it may be early.
    least = -20.0 if kind == "low_var_kl" else -LARGEST_EXPONENT
    difference = difference.clamp(min=least)
    k3: Tensor = torch.expm1(-difference) + difference
    return k3.clamp(-10, 10) if kind == "low_var_kl" else k3


def policy_loss(
    log_ratio: Tensor, advantages: Tensor, *, eps_clip: float, eps_clip_high: float | None, eps_clip_c: float | None
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate of each token, and whether its clipped term is the larger.

    log_ratio: [N] logprobs - old_logprobs. loss = max(-A r, -A clip(r, 1 - eps_clip, 1 + eps_clip_high)), and with dual
    clip, where A < 0, at most -A eps_clip_c (arXiv:1912.09729). A null eps_clip_high is eps_clip.
    """
    ratio = log_ratio.clamp(max=LARGEST_EXPONENT).exp()
    high = eps_clip if eps_clip_high is None else eps_clip_high
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - eps_clip, 1 + high)
    loss = torch.maximum(plain, clipped)
    if eps_clip_c is not None:
        loss = torch.where(advantages < 0, torch.minimum(loss, -advantages * eps_clip_c), loss)
    return loss, clipped > plain


def importance_weights(old_logprobs: Tensor, rollout_logprobs: Tensor, tis_clip: float) -> tuple[Tensor, Tensor]:
    """[N] min(exp(old - rollout), tis_clip), and whether that is less than the ratio; truncated importance sampling.

    The weights make up for the engine having sampled from slightly other probabilities than training computes. No
    gradient goes through them.
    """
    # The ratio itself is cut, not its logarithm: exp(log(1.3)) is not 1.3 in float32. An infinite ratio is cut too.
    ratio = (old_logprobs - rollout_logprobs).detach().exp()
    return ratio.clamp(max=tis_clip), ratio > tis_clip


def grpo_loss(inputs: LossInputs, config: GrpoConfig) -> Loss:
    """The loss of a micro-batch: the surrogate, times its TIS weight, + kl_loss_coef * KL - entropy_coef * entropy.

    kl_coef adds nothing: it is a KL in the reward, which GRPO does not shape; it only makes the reference run.
    """
    mask = inputs.loss_mask
    weights = token_weights(
        mask, inputs.sample_of, inputs.mask_sums, per_token=config.calculate_per_token_loss, cp_rank=inputs.cp_rank
    )
    logprobs = _trained(inputs.logprobs, mask)
    trained_old = logprobs.detach() if inputs.old_logprobs is None else _trained(inputs.old_logprobs, mask)
    rollout = None if inputs.rollout_logprobs is None else _trained(inputs.rollout_logprobs, mask)
    log_ratio = logprobs - (trained_old if not config.use_rollout_logprobs else _given(rollout, "rollout_logprobs"))

    loss, is_clipped = policy_loss(
        log_ratio,
        _trained(inputs.advantages, mask),
        eps_clip=config.eps_clip,
        eps_clip_high=config.eps_clip_high,
        eps_clip_c=config.eps_clip_c,
    )
    tokens = {"clip_fraction": is_clipped, "approx_kl": -log_ratio}
    if config.use_tis:
        tis_weights, is_truncated = importance_weights(
            trained_old, _given(rollout, "rollout_logprobs"), config.tis_clip
        )
        loss = loss * tis_weights
        tokens |= {"tis_weight": tis_weights, "tis_clip_fraction": is_truncated}
    tokens["policy_loss"] = loss
    if inputs.ref_logprobs is not None:
        tokens["kl"] = kl_estimate(config.kl_loss_type, logprobs, _trained(inputs.ref_logprobs, mask))
    if config.kl_loss_coef:
        loss = loss + config.kl_loss_coef * _given(tokens.get("kl"), "ref_logprobs")
    if inputs.entropy is not None:
        tokens["entropy"] = _trained(inputs.entropy, mask)
    if config.entropy_coef:
        loss = loss - config.entropy_coef * _given(tokens.get("entropy"), "entropy")
    tokens["loss"] = loss
    maxima = {}
    if rollout is not None:
        # The engine sampled, so its divergence from training is estimated with the engine's log-probs first.
        tokens["mismatch_kl"] = kl_estimate("k3", rollout, trained_old)
        tokens["mismatch_abs"] = mismatch = (trained_old - rollout).abs()
        if len(mismatch):
            maxima["mismatch_max"] = mismatch.amax()
    return _summed(tokens, maxima, weights)


def _summed(tokens: dict[str, Tensor], maxima: dict[str, Tensor], weights: TokenWeights) -> Loss:
    sums = {name: weights.sum(values) for name, values in tokens.items()}
    return Loss(sums["loss"], weights.divisor, MetricSums.of(sums, maxima, weights.divisor))


def _trained(values: Tensor, mask: Tensor) -> Tensor:
    """0 where a token is not trained on: there an exp could overflow, and 0 * inf is NaN, backward too."""
    return torch.where(mask, values, 0.0)


def _given(values: Tensor | None, name: str) -> Tensor:
    assert values is not None, f"the configured loss needs {name}"
    return values
