"""The terms of the loss at single tokens, worked by hand."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from r1hpc.config.training import GrpoConfig
from r1hpc.train.grpo import KlKind, importance_weights, kl_estimate, policy_loss

LOG2 = math.log(2)


def test_kl_kinds_are_those_of_the_config() -> None:
    assert get_args(KlKind) == get_args(GrpoConfig.model_fields["kl_loss_type"].annotation)


@pytest.mark.parametrize(
    ("kind", "at_log2", "at_minus_log2"),
    [
        ("k1", LOG2, -LOG2),
        ("k2", LOG2**2 / 2, LOG2**2 / 2),
        ("k3", 0.5 - 1 + LOG2, 2 - 1 - LOG2),
        ("low_var_kl", 0.5 - 1 + LOG2, 2 - 1 - LOG2),
    ],
)
def test_kl_of_twice_and_half_the_references_probability(kind: KlKind, at_log2: float, at_minus_log2: float) -> None:
    found = kl_estimate(kind, torch.tensor([LOG2 - 3, -LOG2 - 3]), torch.tensor([-3.0, -3.0]))
    assert found.tolist() == pytest.approx([at_log2, at_minus_log2], abs=1e-6)


def test_low_var_kl_is_cut_at_10_without_a_gradient_and_stays_finite_where_exp_would_not() -> None:
    logprobs = torch.tensor([-5.0, -30.0, -200.0], requires_grad=True)
    found = kl_estimate("low_var_kl", logprobs, torch.zeros(3))
    torch.autograd.backward(found.sum())
    assert found.tolist() == [10.0, 10.0, 10.0]
    assert logprobs.grad is not None and logprobs.grad.tolist() == [0.0, 0.0, 0.0]


def test_k3_of_a_small_difference_is_not_lost_to_rounding() -> None:
    """d^2 / 2 - d^3 / 6 at d = 1e-4: exp(-d) - 1 + d in float32 would be 0 or a few 6e-8."""
    found = kl_estimate("k3", torch.tensor([1e-4]), torch.tensor([0.0]))
    assert found.item() == pytest.approx(5e-9, rel=1e-2)


def surrogate(ratio: float, advantage: float, eps_clip_c: float | None = None) -> tuple[float, bool, float]:
    """Loss, whether clipped, and the gradient by the log-prob, of one token; clips 0.2 and 0.28."""
    log_ratio = torch.tensor([math.log(ratio)], requires_grad=True)
    loss, is_clipped = policy_loss(
        log_ratio, torch.tensor([advantage]), eps_clip=0.2, eps_clip_high=0.28, eps_clip_c=eps_clip_c
    )
    (grad,) = torch.autograd.grad(loss.sum(), log_ratio)
    return loss.item(), bool(is_clipped.item()), grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "is_clipped", "grad"),
    [
        (1.1, 2.0, -2.2, False, -2.2),
        (1.5, 2.0, -2.56, True, 0.0),  # pushed up enough: -2 * 1.28
        (0.5, 2.0, -1.0, False, -1.0),  # below the lower clip, yet a gain to come back from
        (0.9, -2.0, 1.8, False, 1.8),
        (0.5, -2.0, 1.6, True, 0.0),  # pushed down enough: 2 * 0.8
        (1.5, -2.0, 3.0, False, 3.0),  # above the upper clip, yet a loss to come back from
    ],
)
def test_clips_only_the_side_that_the_advantage_pushes_to(
    ratio: float, advantage: float, loss: float, is_clipped: bool, grad: float
) -> None:
    found = surrogate(ratio, advantage)
    assert found[0] == pytest.approx(loss) and found[1] is is_clipped and found[2] == pytest.approx(grad)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "grad"),
    [
        (5.0, -2.0, 6.0, 0.0),  # 10 without dual clip; at most 3 * 2
        (2.0, -2.0, 4.0, 4.0),
        (0.5, -2.0, 1.6, 0.0),  # the ordinary clip holds below
        (5.0, 2.0, -2.56, 0.0),  # only negative advantages
    ],
)
def test_dual_clip_bounds_the_loss_of_negative_advantages(
    ratio: float, advantage: float, loss: float, grad: float
) -> None:
    found = surrogate(ratio, advantage, eps_clip_c=3.0)
    assert found[0] == pytest.approx(loss) and found[2] == pytest.approx(grad)


def test_the_upper_clip_is_the_lower_one_unless_given() -> None:
    loss, _ = policy_loss(torch.tensor([1.0]), torch.ones(1), eps_clip=0.3, eps_clip_high=None, eps_clip_c=None)
    assert loss.item() == pytest.approx(-1.3)


@pytest.mark.parametrize("difference", [100.0, 1000.0])
def test_a_ratio_beyond_float32_that_is_clipped_has_a_gradient_of_zero_not_nan(difference: float) -> None:
    log_ratio = torch.tensor([difference], requires_grad=True)
    loss, _ = policy_loss(log_ratio, torch.ones(1), eps_clip=0.2, eps_clip_high=None, eps_clip_c=None)
    torch.autograd.backward(loss.sum())
    assert loss.item() == pytest.approx(-1.2)
    assert log_ratio.grad is not None and log_ratio.grad.item() == 0.0


def test_importance_weights_are_truncated_ratios_of_old_to_rollout_without_a_gradient() -> None:
    rollout = torch.full((4,), -2.0)
    old: Tensor = (rollout + torch.tensor([math.log(1.5), math.log(0.25), math.log(3), 500.0])).requires_grad_()
    found, truncated = importance_weights(old, rollout, tis_clip=2.0)
    assert found.tolist() == pytest.approx([1.5, 0.25, 2.0, 2.0])
    assert truncated.tolist() == [False, False, True, True]
    assert not found.requires_grad


@pytest.mark.parametrize("clip", [1.0, 1.144, 1.32, 2.0, 4.567])
def test_truncated_are_the_weights_that_the_clip_made_smaller(clip: float) -> None:
    # exp(log(1.144)) and exp(log(1.32)) fall short of them in float32, and log-probs that agree are not truncated at 1.
    old, rollout = torch.tensor([-1.0, -2.0, -1.0]), torch.tensor([-1.0, -1.0, -6.0])
    found, truncated = importance_weights(old, rollout, tis_clip=clip)
    assert truncated.tolist() == [False, False, True]
    assert found[0] == 1.0
    assert found[2] == torch.tensor(clip)
