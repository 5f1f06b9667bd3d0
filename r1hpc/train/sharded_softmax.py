"""Softmax of logits of which every tensor-parallel rank has some columns and, at any time, a chunk of the rows.

A row's log-softmax needs four numbers from each shard. With the maximum m of its logits x, and y = (x - m) /
temperature: m, sum exp(y), the target's x and, for the entropy, sum y exp(y). Nothing else is communicated, and these
once for all rows.
Logits are in the dtype of the model; everything else is float32, or float64 where the model is that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

PIECES = 4
"""Float32 work on a chunk goes by so many parts of it: fewer take more memory, and on a GPU more take longer to launch
than to run."""


@dataclass(frozen=True)
class Target:
    """Where the targets of N rows lie in this rank's shard."""

    here: Tensor
    """[N] bool: in this one."""
    column: Tensor
    """[N, 1] int64: there; 0 where it is in another."""

    @classmethod
    def of(cls, targets: Tensor, columns: int, rank: int) -> Target:
        """From [N] places in the whole vocabulary, of which each rank has `columns`."""
        local = targets - rank * columns
        here = (local >= 0) & (local < columns)
        return cls(here, local.where(here, 0)[:, None])

    def __getitem__(self, part: slice) -> Target:
        return Target(self.here[part], self.column[part])


@dataclass(frozen=True)
class Softmax:
    """What is known of N rows' softmax over the whole vocabulary."""

    logprobs: Tensor
    """[N] of the targets."""
    shift: Tensor
    """[N] log-probs are (logits - shift) / temperature."""
    entropy: Tensor | None
    """[N]"""


@dataclass(frozen=True)
class Slopes:
    """[N] each. The gradient by a row's logits: `at_target` by the target's, p * (level + tilt * log p) by others."""

    at_target: Tensor
    level: Tensor
    tilt: Tensor | None

    def __getitem__(self, part: slice) -> Slopes:
        return Slopes(self.at_target[part], self.level[part], None if self.tilt is None else self.tilt[part])


def fill_statistics(statistics: Tensor, logits: Tensor, target: Target, temperature: float) -> None:
    """Set [3 or 4, n] to m, sum exp(y), the target's x (0 where another shard has it) and, if asked, sum y exp(y).

    logits: [n, V / tp], overwritten where they are float32 already.
    """
    statistics[2] = logits.gather(1, target.column).squeeze(1).where(target.here, 0)
    for piece in _pieces(len(logits)):
        _fill_sums(statistics[:, piece], logits[piece], temperature)


def merged(statistics: Tensor, group: dist.ProcessGroup | None, temperature: float) -> Softmax:
    """The softmax over the whole vocabulary from this shard's [3 or 4, N]. Collective over the group."""
    shards = _gathered(statistics, group)
    maxima, sums, targets = shards[:, 0], shards[:, 1], shards[:, 2]
    maximum = maxima.amax(dim=0)
    below = (maxima - maximum) / temperature
    scaled = sums * below.exp()
    normalizer = scaled.sum(dim=0)
    log_sum = normalizer.log()
    entropy = None
    if shards.shape[1] == 4:
        # -sum p log p = log sum exp(y) - sum p y, each shard's y lowered to the common maximum.
        entropy = log_sum - (shards[:, 3] * below.exp() + below * scaled).sum(dim=0) / normalizer
    logprobs = (targets.sum(dim=0) - maximum) / temperature - log_sum
    return Softmax(logprobs, maximum + temperature * log_sum, entropy)


def slopes_of(whole: Softmax, grad_logprobs: Tensor, grad_entropy: Tensor | None, temperature: float) -> Slopes:
    """From d logprob / dx = ([x is the target] - p) / temperature and d entropy / dx = -p (log p + H) / temperature."""
    level = -grad_logprobs / temperature
    # 1 - p, exactly also where p is nearly 1.
    at_target = level * torch.expm1(whole.logprobs)
    if grad_entropy is None or whole.entropy is None:
        return Slopes(at_target, level, None)
    tilt = -grad_entropy / temperature
    at_target = at_target + tilt * whole.logprobs.exp() * (whole.logprobs + whole.entropy)
    return Slopes(at_target, level + tilt * whole.entropy, tilt)


def logits_to_gradient_(logits: Tensor, target: Target, shift: Tensor, slopes: Slopes, temperature: float) -> None:
    """Overwrite [n, V / tp] logits with the gradient by them, rounded to their dtype once."""
    for piece in _pieces(len(logits)):
        _fill_gradient(logits[piece], shift[piece], slopes[piece], temperature)
    elsewhere = logits.gather(1, target.column)
    at_target = slopes.at_target[:, None].to(logits.dtype)
    logits.scatter_(1, target.column, at_target.where(target.here[:, None], elsewhere))


def _fill_sums(statistics: Tensor, logits: Tensor, temperature: float) -> None:
    statistics[0] = logits.amax(dim=-1)
    y = _shifted(logits, statistics[0], temperature)
    exponentials = y.exp()
    statistics[1] = exponentials.sum(dim=-1)
    if len(statistics) == 4:
        statistics[3] = exponentials.mul_(y).sum(dim=-1)


def _fill_gradient(logits: Tensor, shift: Tensor, slopes: Slopes, temperature: float) -> None:
    """As if no logit were a target's."""
    logp = _shifted(logits, shift, temperature)
    level = slopes.level[:, None]
    if slopes.tilt is None:
        torch.mul(logp.exp_(), level, out=logits)
    else:
        p = logp.exp()
        torch.mul(torch.addcmul(level, logp, slopes.tilt[:, None], out=logp), p, out=logits)


def _shifted(logits: Tensor, shift: Tensor, temperature: float) -> Tensor:
    """(logits - shift) / temperature in the dtype of shift; in place of the logits where that is theirs."""
    own = logits if logits.dtype == shift.dtype else None
    return torch.sub(logits, shift[:, None], out=own).div_(temperature)


def _gathered(statistics: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """[tp, ...] of every rank's [...]."""
    if group is None or group.size() == 1:
        return statistics[None]
    # Gloo wants the shards along the first dimension that there is, not along a new one.
    shards = statistics.new_empty(group.size() * len(statistics), *statistics.shape[1:])
    dist.all_gather_into_tensor(shards, statistics, group=group)
    return shards.view(group.size(), *statistics.shape)


def _pieces(rows: int) -> Iterator[slice]:
    step = -(-rows // PIECES)
    return (slice(begin, begin + step) for begin in range(0, rows, step))
