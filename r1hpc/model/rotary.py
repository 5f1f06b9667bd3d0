"""Rotary position embedding as DeepSeek-V3 has it: plain or yarn, on pairs of neighboring features.

The tables are float32 and belong to a micro-batch: the first layer that needs one makes it, the others find it on the
`PackedSequences`. Formulas: arXiv:2309.00071 (yarn), as transformers' DeepseekV3 and megatron-core compute them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from megatron.core.transformer import MLATransformerConfig
from torch import Tensor

from r1hpc.model.packed import PackedSequences


@dataclass(frozen=True)
class Yarn:
    """How the frequencies of a model that was trained on shorter sequences are stretched."""

    factor: float
    original_length: int
    """Longest sequence before stretching, in tokens."""
    beta_fast: float
    """Features that turn more often than this within `original_length` keep their frequency."""
    beta_slow: float
    """Features that turn less often than this are slowed down by the whole factor."""
    mscale: float
    mscale_all_dim: float


@dataclass(frozen=True)
class Rotary:
    """Frequencies and scales of a model's rotary embedding."""

    width: int
    """Features of a head that are rotated; even."""
    base: float
    yarn: Yarn | None

    @classmethod
    def of(cls, config: MLATransformerConfig) -> Rotary:
        """Of Megatron's config. Raises ValueError for a kind other than rope and yarn."""
        if config.rope_type not in ("rope", "yarn"):
            raise ValueError(f"rope_type {config.rope_type!r}: must be 'rope' or 'yarn'")
        yarn = Yarn(
            factor=config.rotary_scaling_factor,
            original_length=config.original_max_position_embeddings,
            beta_fast=config.beta_fast,
            beta_slow=config.beta_slow,
            mscale=config.mscale,
            mscale_all_dim=config.mscale_all_dim,
        )
        return cls(config.qk_pos_emb_head_dim, config.rotary_base, yarn if config.rope_type == "yarn" else None)

    @property
    def softmax_factor(self) -> float:
        """What 1 / sqrt(width of a head) is multiplied by in the softmax scale of attention."""
        if self.yarn is None or not self.yarn.mscale_all_dim:
            return 1.0
        return _mscale(self.yarn.factor, self.yarn.mscale_all_dim) ** 2

    @property
    def amplitude(self) -> float:
        """What cosines and sines are multiplied by; 1 for DeepSeek-V3, whose two mscales are equal."""
        if self.yarn is None:
            return 1.0
        if self.yarn.mscale and self.yarn.mscale_all_dim:
            return _mscale(self.yarn.factor, self.yarn.mscale) / _mscale(self.yarn.factor, self.yarn.mscale_all_dim)
        return _mscale(self.yarn.factor, 1.0)

    def frequencies(self) -> Tensor:
        """[width / 2] float32 on the CPU: radians a position."""
        periods = self.base ** (torch.arange(0, self.width, 2, dtype=torch.float32) / self.width)
        own = 1.0 / periods
        if self.yarn is None:
            return own
        kept = self._kept_shares(self.yarn)
        return own * kept + 1.0 / (self.yarn.factor * periods) * (1 - kept)

    def _kept_shares(self, yarn: Yarn) -> Tensor:
        """[width / 2] 1 where the own frequency is kept, 0 where it is stretched, a ramp in between."""
        low = max(math.floor(self._feature_turning(yarn.beta_fast, yarn.original_length)), 0)
        high = min(math.ceil(self._feature_turning(yarn.beta_slow, yarn.original_length)), self.width - 1)
        ramp = (torch.arange(self.width // 2, dtype=torch.float32) - low) / (high - low if high != low else 0.001)
        return 1 - ramp.clamp(0, 1)

    def _feature_turning(self, turns: float, length: int) -> float:
        """The (fractional) number of the feature pair that turns so many times within so many tokens."""
        return self.width * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(self.base))


@dataclass(frozen=True)
class RotaryTable:
    """Cosines and sines of some tokens' positions, times the amplitude."""

    cos: Tensor
    """[T, width / 2] float32."""
    sin: Tensor
    """[T, width / 2] float32."""

    def rows(self, begin: int, end: int) -> RotaryTable:
        """Of tokens `begin` to `end` alone."""
        return RotaryTable(self.cos[begin:end], self.sin[begin:end])


def rotary_table(rotary: Rotary, sequences: PackedSequences) -> RotaryTable:
    """The table of this rank's tokens; made once a micro-batch and kept with it."""
    table = sequences.computed.get(rotary)
    if not isinstance(table, RotaryTable):
        table = sequences.computed[rotary] = _make_table(rotary, sequences.positions)
    return table


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Turn the feature pairs (0, 1), (2, 3), ... of each token by its angles.

    x: [T, ..., width]. Returns the same shape and dtype with the first of all pairs before the second of all pairs,
    the order in which DeepSeek-V3 is defined; queries and keys share it, so their products do not depend on it.
    """
    between = (1,) * (x.dim() - 2)
    cos, sin = (part.view(len(part), *between, -1) for part in (table.cos, table.sin))
    first, second = x[..., 0::2], x[..., 1::2]
    # The products are float32 (or wider), whatever x is: rounded once, at the end.
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def _make_table(rotary: Rotary, positions: Tensor) -> RotaryTable:
    # A first pass under inference mode must not leave tensors that training then cannot save for its backward pass.
    with torch.inference_mode(False), torch.no_grad():
        # One float32 product an angle, as transformers and the engine have it: more exact would be different.
        angles = positions.to(torch.float32)[:, None] * rotary.frequencies().to(positions.device)
        return RotaryTable(angles.cos() * rotary.amplitude, angles.sin() * rotary.amplitude)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
