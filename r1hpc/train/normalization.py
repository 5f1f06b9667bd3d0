"""What a token weighs in the loss, what the sum over every rank is divided by, and metrics that add up the same way.

    loss of a step = sum over its tokens of weight * l  /  sum over its micro-batches and ranks of divisor

Per sample (the default), a token weighs 1 / (trained tokens of its whole sample), so a sample's tokens weigh 1
together, wherever context parallelism put them; the divisor counts samples, each once, on context rank 0. Per token,
every trained token weighs 1 and the divisor counts them. Either way the quotient is the same for any packing, order,
data or context parallelism.

Samples of 2 and 1 trained tokens, one token after them that is not trained on:
    weights 0.5 0.5 1 0 and divisor 2 per sample, 1 1 1 0 and divisor 3 per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

MEANS = (
    "loss",
    "policy_loss",
    "clip_fraction",
    "approx_kl",
    "entropy",
    "kl",
    "tis_weight",
    "tis_clip_fraction",
    "mismatch_abs",
    "mismatch_kl",
)
"""Metrics that are averaged over tokens with the weights of the loss."""

MAXIMA = ("mismatch_max",)
"""Metrics of which the largest over all trained tokens counts."""


@dataclass(frozen=True)
class TokenWeights:
    """The share of tokens in a step's loss."""

    weights: Tensor
    """[N] float32, 0.0 where a token is not trained on."""
    divisor: Tensor
    """Scalar int64: this rank's part of the number that sums of weighted tokens are divided by."""

    def sum(self, values: Tensor) -> Tensor:
        """Scalar: the weighted sum of [N] values, which must be finite at untrained tokens too."""
        return (self.weights * values).sum()


def token_weights(
    loss_mask: Tensor, sample_of: Tensor, mask_sums: Tensor, *, per_token: bool, cp_rank: int
) -> TokenWeights:
    """The weights of N tokens of a micro-batch of S samples, of which this context rank holds a share.

    loss_mask: [N] bool; sample_of: [N] int64, S in padding; mask_sums: [S + 1] trained tokens of each whole sample, as
    `MicroBatch` has them. A sample without trained tokens counts in the divisor and adds nothing.
    """
    if per_token:
        return TokenWeights(loss_mask.float(), loss_mask.sum())
    samples = len(mask_sums) - 1 if cp_rank == 0 else 0
    weights = loss_mask / mask_sums.clamp(min=1)[sample_of]
    # Filled there: torch.tensor would copy it there, for which a GPU is waited for.
    return TokenWeights(weights, torch.full((), samples, dtype=torch.int64, device=loss_mask.device))


@dataclass(frozen=True)
class MetricSums:
    """Metrics as parts that add up over micro-batches and ranks; every rank has the same places for them."""

    sums: Tensor
    """[2, len(MEANS)] float64: weighted sums, and what they are to be divided by; 0 and 0 where there are none."""
    maxima: Tensor
    """[len(MAXIMA)] float64, -inf where there are none."""

    @classmethod
    def empty(cls) -> MetricSums:
        """Of no tokens, on the host."""
        sums = torch.zeros(2, len(MEANS), dtype=torch.float64)
        return cls(sums, torch.full((len(MAXIMA),), -torch.inf, dtype=torch.float64))

    @classmethod
    def of(cls, sums: Mapping[str, Tensor], maxima: Mapping[str, Tensor], divisor: Tensor) -> MetricSums:
        """Of scalars under names of MEANS and MAXIMA, on the device of `divisor`, which divides all the sums."""
        assert sums.keys() <= set(MEANS) and maxima.keys() <= set(MAXIMA), f"unknown: {[*sums, *maxima]}"
        nothing, least = (divisor.new_full((), value, dtype=torch.float64) for value in (0.0, -torch.inf))
        numerators = [sums[name].detach().double() if name in sums else nothing for name in MEANS]
        divisors = [divisor.double() if name in sums else nothing for name in MEANS]
        largest = [maxima[name].detach().double() if name in maxima else least for name in MAXIMA]
        return cls(torch.stack([torch.stack(numerators), torch.stack(divisors)]), torch.stack(largest))

    @classmethod
    def total(cls, parts: Iterable[MetricSums]) -> MetricSums:
        """Of all tokens of the parts, which lie on one device."""
        parts = tuple(parts)
        if not parts:
            return cls.empty()
        maxima = torch.stack([part.maxima for part in parts])
        return cls(torch.stack([part.sums for part in parts]).sum(dim=0), maxima.amax(dim=0))

    def values(self) -> dict[str, float]:
        """The metrics that there are, by name. Waits for the device."""
        numerators, divisors = self.sums.tolist()
        means = zip(MEANS, numerators, divisors, strict=True)
        maxima = zip(MAXIMA, self.maxima.tolist(), strict=True)
        return {name: numerator / divisor for name, numerator, divisor in means if divisor} | {
            name: largest for name, largest in maxima if largest > -torch.inf
        }
