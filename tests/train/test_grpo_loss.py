"""The loss of a micro-batch against the formulas written out token by token, and what each option changes in it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from r1hpc.config.training import GrpoConfig
from r1hpc.train.grpo import LossInputs, grpo_loss

CLIPS = {"eps_clip": 0.2, "eps_clip_high": 0.28}

# Samples of 3 and 2 response tokens, the second of the first not trained on; then a token of padding.
MASK = [True, False, True, True, True, False]
SAMPLE_OF = [0, 0, 0, 1, 1, 2]
MASK_SUMS = [2.0, 2.0, 1.0]
ADVANTAGES = [1.5, 1.5, 1.5, -0.5, -0.5, 0.0]
LOGPROBS = [-1.0, -2.0, -0.5, -3.0, -0.7, -9.0]
OLD = [-1.1, -2.5, -1.5, -3.1, -0.2, -1.0]
REF = [-1.3, -2.2, -0.6, -2.0, -0.9, -1.0]
ROLLOUT = [-1.2, -2.4, -1.4, -4.1, -0.25, -1.0]
ENTROPY = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]


def inputs(**changes: Any) -> LossInputs:
    """The tokens above, without reference, rollout and entropy but where given."""
    given = LossInputs(
        logprobs=torch.tensor(LOGPROBS, requires_grad=True),
        advantages=torch.tensor(ADVANTAGES),
        loss_mask=torch.tensor(MASK),
        sample_of=torch.tensor(SAMPLE_OF),
        mask_sums=torch.tensor(MASK_SUMS),
        cp_rank=0,
        old_logprobs=torch.tensor(OLD),
    )
    return replace(given, **changes)


def config(**fields: object) -> GrpoConfig:
    """Of these fields, clips 0.2 and 0.28."""
    return GrpoConfig.model_validate(CLIPS | fields)


def written_out(logprobs: Tensor, *, per_token: bool) -> Tensor:
    """All terms at once: clip, dual clip at 3, TIS at 2, 0.1 of k3, 0.01 of entropy. A sum, not yet divided."""
    total = torch.zeros(())
    for t, trained in enumerate(MASK):
        if not trained:
            continue
        logp, advantage = logprobs[t], ADVANTAGES[t]
        ratio = torch.exp(logp - OLD[t])
        loss = torch.max(-advantage * ratio, -advantage * torch.clip(ratio, 0.8, 1.28))
        if advantage < 0:
            loss = torch.min(loss, torch.tensor(-advantage * 3.0))
        loss = loss * min(math.exp(OLD[t] - ROLLOUT[t]), 2.0)
        d = logp - REF[t]
        loss = loss + 0.1 * (torch.exp(-d) - 1 + d) - 0.01 * ENTROPY[t]
        total = total + loss / (1.0 if per_token else MASK_SUMS[SAMPLE_OF[t]])
    return total


@pytest.mark.parametrize(("per_token", "divisor"), [(False, 2), (True, 4)])
def test_loss_and_gradient_equal_the_formulas_written_out(per_token: bool, divisor: int) -> None:
    everything = inputs(
        ref_logprobs=torch.tensor(REF), rollout_logprobs=torch.tensor(ROLLOUT), entropy=torch.tensor(ENTROPY)
    )
    found = grpo_loss(
        everything,
        config(
            eps_clip_c=3.0,
            use_tis=True,
            use_kl_loss=True,
            kl_loss_coef=0.1,
            kl_loss_type="k3",
            entropy_coef=0.01,
            calculate_per_token_loss=per_token,
        ),
    )
    logprobs = torch.tensor(LOGPROBS, requires_grad=True)
    expected = written_out(logprobs, per_token=per_token)
    torch.testing.assert_close(found.total, expected, rtol=1e-6, atol=1e-7)
    assert found.divisor.item() == divisor
    (grad,) = torch.autograd.grad(found.total, everything.logprobs)
    (expected_grad,) = torch.autograd.grad(expected, logprobs)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-6, atol=1e-7)


def test_metrics_are_means_over_samples_of_the_means_over_their_trained_tokens() -> None:
    found = grpo_loss(
        inputs(ref_logprobs=torch.tensor(REF), rollout_logprobs=torch.tensor(ROLLOUT), entropy=torch.tensor(ENTROPY)),
        config(use_kl_loss=True, kl_loss_type="k1"),
    ).metrics.values()
    # Ratios e^0.1, e^1 with advantage 1.5: the second is clipped at 1.28. e^0.1, e^-0.5 with -0.5: clipped at 0.8.
    policy = [-1.5 * math.exp(0.1), -1.5 * 1.28, 0.5 * math.exp(0.1), 0.5 * 0.8]
    assert found["policy_loss"] == pytest.approx(sum(policy) / 4)
    assert found["loss"] == pytest.approx(found["policy_loss"])
    assert found["clip_fraction"] == pytest.approx(0.5)
    assert found["approx_kl"] == pytest.approx((-0.1 - 1.0 - 0.1 + 0.5) / 4)
    assert found["kl"] == pytest.approx((0.3 + 0.1 - 1.0 + 0.2) / 4)
    assert found["entropy"] == pytest.approx((0.5 + 0.7 + 0.8 + 0.9) / 4)
    mismatch = [0.1, -0.1, 1.0, 0.05]
    assert found["mismatch_abs"] == pytest.approx((0.1 + 0.1 + 1.0 + 0.05) / 4)
    assert found["mismatch_kl"] == pytest.approx(sum(math.exp(d) - 1 - d for d in mismatch) / 4, rel=1e-5)
    assert found["mismatch_max"] == pytest.approx(1.0)
    assert found.keys().isdisjoint({"tis_weight", "tis_clip_fraction"})


def test_tis_metrics_are_the_mean_weight_and_how_often_it_was_cut() -> None:
    found = grpo_loss(inputs(rollout_logprobs=torch.tensor(ROLLOUT)), config(use_tis=True)).metrics.values()
    assert found["tis_weight"] == pytest.approx((math.exp(0.1) + math.exp(-0.1) + 2.0 + math.exp(0.05)) / 4)
    assert found["tis_clip_fraction"] == pytest.approx(0.25)


def test_without_old_logprobs_the_ratio_is_one_and_the_gradient_that_of_minus_advantage_times_logprob() -> None:
    alone = inputs(old_logprobs=None)
    found = grpo_loss(alone, config())
    assert found.metrics.values()["clip_fraction"] == 0.0
    assert found.total.item() == pytest.approx(-1.5 + 0.5)
    (grad,) = torch.autograd.grad(found.total, alone.logprobs)
    assert grad.tolist() == pytest.approx([-0.75, 0, -0.75, 0.25, 0.25, 0])


def test_rollout_logprobs_can_take_the_place_of_the_old_ones_and_the_mismatch_is_still_seen() -> None:
    rollout = torch.tensor(ROLLOUT)
    found = grpo_loss(inputs(rollout_logprobs=rollout), config(use_rollout_logprobs=True))
    assert found.total.item() == pytest.approx(grpo_loss(inputs(old_logprobs=rollout), config()).total.item())
    assert found.metrics.values()["mismatch_abs"] == pytest.approx(1.25 / 4)


@pytest.mark.parametrize("fields", [{"kl_coef": 0.5}, {"use_kl_loss": True}, {"kl_loss_type": "k3"}])
def test_kl_is_a_metric_only_unless_its_loss_coefficient_is_set(fields: dict[str, object]) -> None:
    with_reference = inputs(ref_logprobs=torch.tensor(REF))
    found, plain = grpo_loss(with_reference, config(**fields)), grpo_loss(inputs(), config())
    assert found.total.item() == plain.total.item()
    assert "kl" in found.metrics.values() and "kl" not in plain.metrics.values()


def test_entropy_is_subtracted_and_reported() -> None:
    entropy = torch.tensor(ENTROPY, requires_grad=True)
    found, plain = grpo_loss(inputs(entropy=entropy), config(entropy_coef=0.5)), grpo_loss(inputs(), config())
    assert found.total.item() == pytest.approx(plain.total.item() - 0.5 * (1.2 + 1.7) / 2)
    (grad,) = torch.autograd.grad(found.total, entropy)
    assert grad.tolist() == [-0.25, 0, -0.25, -0.25, -0.25, 0]


@pytest.mark.parametrize("strange", [1e4, -1e4, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("kl_loss_type", ["k1", "k2", "k3", "low_var_kl"])
def test_what_untrained_tokens_hold_changes_neither_loss_nor_gradient_nor_metrics(
    strange: float, kl_loss_type: str
) -> None:
    options = config(use_tis=True, use_kl_loss=True, kl_loss_coef=0.1, kl_loss_type=kl_loss_type, entropy_coef=0.01)

    def outcome(at_untrained: float) -> tuple[float, list[float], dict[str, float]]:
        logprobs, old, ref, rollout, entropy, advantages = (
            torch.where(torch.tensor(MASK), torch.tensor(values), at_untrained)
            for values in (LOGPROBS, OLD, REF, ROLLOUT, ENTROPY, ADVANTAGES)
        )
        given = inputs(
            logprobs=logprobs.requires_grad_(),
            old_logprobs=old,
            ref_logprobs=ref,
            rollout_logprobs=rollout,
            entropy=entropy,
            advantages=advantages,
        )
        loss = grpo_loss(given, options)
        (grad,) = torch.autograd.grad(loss.total, given.logprobs)
        return loss.total.item(), grad.tolist(), loss.metrics.values()

    assert outcome(strange) == outcome(0.0)


def test_a_rank_without_tokens_has_a_loss_of_zero_that_backward_runs_through() -> None:
    logprobs = torch.zeros(0, requires_grad=True)
    nothing = LossInputs(
        logprobs,
        advantages=torch.zeros(0),
        loss_mask=torch.zeros(0, dtype=torch.bool),
        sample_of=torch.zeros(0, dtype=torch.int64),
        mask_sums=torch.tensor([3.0, 1.0]),
        cp_rank=1,
        rollout_logprobs=torch.zeros(0),
    )
    found = grpo_loss(nothing, config())
    torch.autograd.backward(found.total)
    assert (found.total.item(), found.divisor.item()) == (0.0, 0)
    assert logprobs.grad is not None and logprobs.grad.shape == (0,)
    assert found.metrics.values() == {}
