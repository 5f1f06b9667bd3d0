"""However a step's tokens are dealt to micro-batches and ranks: the same loss, the same gradients, the same metrics."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from r1hpc.config.training import GrpoConfig
from r1hpc.train.grpo import LossInputs, grpo_loss
from r1hpc.train.normalization import MAXIMA, MEANS, MetricSums, token_weights


@dataclass(frozen=True)
class Dealing:
    """Which micro-batch has each sample, which context rank has each of its tokens, and in what order."""

    masks: list[list[bool]]
    """Of each sample's response tokens."""
    micro_batch_of: list[int]
    context_rank_of: list[list[int]]
    order: list[int]
    """A permutation of the samples."""


@st.composite
def dealings(draw: st.DrawFn) -> Dealing:
    """Of one to six samples; some without trained tokens, some ranks without tokens."""
    masks = draw(st.lists(st.lists(st.booleans(), min_size=1, max_size=7), min_size=1, max_size=6))
    count = len(masks)
    return Dealing(
        masks=masks,
        micro_batch_of=draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)),
        context_rank_of=[draw(st.lists(st.integers(0, 3), min_size=len(m), max_size=len(m))) for m in masks],
        order=draw(st.permutations(range(count))),
    )


@dataclass(frozen=True)
class Step:
    """What a step came to."""

    loss: float
    gradient: Tensor
    metrics: dict[str, float]


def together(masks: list[list[bool]]) -> Dealing:
    """All samples in one micro-batch of one rank."""
    return Dealing(masks, [0] * len(masks), [[0] * len(mask) for mask in masks], list(range(len(masks))))


def step(dealing: Dealing, config: GrpoConfig) -> Step:
    """Add up micro-batches and ranks as training does. Token values depend on the token alone, not on its place."""
    tokens = [(sample, place) for sample, mask in enumerate(dealing.masks) for place in range(len(mask))]
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(6, len(tokens), generator=generator, dtype=torch.float64) / 2
    logprobs = values[0].clone().requires_grad_()
    totals, divisors, metrics = [], [], []
    for number in sorted(set(dealing.micro_batch_of)):
        samples = [sample for sample in dealing.order if dealing.micro_batch_of[sample] == number]
        mask_sums = torch.tensor([float(sum(dealing.masks[sample])) for sample in samples] + [1.0])
        for rank in range(4):
            here = [
                token
                for sample in samples
                for token, (of, place) in enumerate(tokens)
                if of == sample and dealing.context_rank_of[sample][place] == rank
            ]
            index = torch.tensor(here, dtype=torch.int64)
            of_tokens = [tokens[token] for token in here]
            loss = grpo_loss(
                LossInputs(
                    logprobs[index],
                    advantages=torch.tensor([sample - 1.5 for sample, _ in of_tokens], dtype=torch.float64),
                    loss_mask=torch.tensor([dealing.masks[of][place] for of, place in of_tokens], dtype=torch.bool),
                    sample_of=torch.tensor([samples.index(of) for of, _ in of_tokens], dtype=torch.int64),
                    mask_sums=mask_sums,
                    cp_rank=rank,
                    old_logprobs=values[1][index],
                    ref_logprobs=values[2][index],
                    rollout_logprobs=values[3][index],
                    entropy=values[4][index],
                ),
                config,
            )
            totals.append(loss.total)
            divisors.append(loss.divisor)
            metrics.append(loss.metrics)
    divisor = sum(d.item() for d in divisors)
    mean = torch.stack(totals).sum() / max(1, divisor)
    (gradient,) = torch.autograd.grad(mean, logprobs)
    return Step(mean.item(), gradient, MetricSums.total(metrics).values())


@settings(deadline=None, max_examples=60)
@given(dealing=dealings(), per_token=st.booleans())
def test_loss_gradient_and_metrics_do_not_depend_on_how_tokens_are_dealt(dealing: Dealing, per_token: bool) -> None:
    config = GrpoConfig(
        calculate_per_token_loss=per_token,
        use_kl_loss=True,
        kl_loss_coef=0.1,
        kl_loss_type="k3",
        entropy_coef=0.01,
        eps_clip_c=3.0,
        use_tis=True,
    )
    whole, dealt = step(together(dealing.masks), config), step(dealing, config)
    assert dealt.loss == pytest.approx(whole.loss, rel=1e-6, abs=1e-9)
    torch.testing.assert_close(dealt.gradient, whole.gradient, rtol=1e-6, atol=1e-9)
    assert dealt.metrics == pytest.approx(whole.metrics, rel=1e-6, abs=1e-9)
    assert whole.metrics.get("loss", 0.0) == pytest.approx(whole.loss, rel=1e-6, abs=1e-9)


def test_weights_worked_by_hand() -> None:
    """The numbers of normalization.py's first lines, on a rank that holds all of both samples."""
    mask, sample_of = torch.tensor([True, True, True, False]), torch.tensor([0, 0, 1, 2])
    mask_sums = torch.tensor([2.0, 1.0, 1.0])
    per_sample = token_weights(mask, sample_of, mask_sums, per_token=False, cp_rank=0)
    assert (per_sample.weights.tolist(), per_sample.divisor.item()) == ([0.5, 0.5, 1.0, 0.0], 2)
    per_token = token_weights(mask, sample_of, mask_sums, per_token=True, cp_rank=0)
    assert (per_token.weights.tolist(), per_token.divisor.item()) == ([1.0, 1.0, 1.0, 0.0], 3)


def test_samples_are_counted_on_context_rank_0_only_and_divided_by_their_whole_mask() -> None:
    """This rank holds one of a sample's four trained tokens."""
    found = token_weights(torch.tensor([True]), torch.tensor([0]), torch.tensor([4.0, 1.0]), per_token=False, cp_rank=3)
    assert (found.weights.tolist(), found.divisor.item()) == ([0.25], 0)


def test_a_sample_without_trained_tokens_counts_and_adds_nothing() -> None:
    found = token_weights(
        torch.tensor([False, True]), torch.tensor([0, 1]), torch.tensor([0.0, 1.0, 1.0]), per_token=False, cp_rank=0
    )
    assert (found.weights.tolist(), found.divisor.item()) == ([0.0, 1.0], 2)


def test_divisors_are_integers_as_megatron_sums_them() -> None:
    mask, sums = torch.tensor([True]), torch.tensor([1.0, 1.0])
    for per_token in (False, True):
        found = token_weights(mask, torch.tensor([0]), sums, per_token=per_token, cp_rank=0)
        assert found.divisor.dtype == torch.int64 and found.divisor.shape == ()


def test_metric_sums_add_up_to_means_and_largest_and_leave_out_what_there_is_none_of() -> None:
    first = MetricSums.of({"loss": torch.tensor(3.0)}, {"mismatch_max": torch.tensor(0.25)}, torch.tensor(2))
    second = MetricSums.of({"loss": torch.tensor(1.0)}, {"mismatch_max": torch.tensor(0.75)}, torch.tensor(6))
    total = MetricSums.total([first, MetricSums.empty(), second])
    assert total.values() == {"loss": 0.5, "mismatch_max": 0.75}
    assert MetricSums.total([]).values() == {}


def test_every_metric_has_one_place() -> None:
    assert len({*MEANS, *MAXIMA}) == len(MEANS) + len(MAXIMA)
    empty = MetricSums.empty()
    assert (empty.sums.shape, empty.maxima.shape) == ((2, len(MEANS)), (len(MAXIMA),))
