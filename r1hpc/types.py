"""What travels between the parts of a run: from the prompt to the trainer. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy
from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "abort"]


@dataclass(frozen=True)
class Prompt:
    """One line of the prompt data, once in an epoch."""

    index: int
    """Place in the file (in its slice), before any shuffling: with the epoch it names the prompt."""
    epoch: int
    tokens: NDArray[numpy.int32]
    """[P] chat template and generation prompt included."""
    label: str | None = None
    """What the reward compares with."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Of the line; `rm_type` there overrides the configured reward."""


@dataclass(frozen=True)
class VersionSpan:
    """Response tokens [begin, end) that weights of one version generated."""

    version: int
    begin: int
    end: int


@dataclass(frozen=True)
class Generation:
    """A response as an engine gave it, whole or as far as it got."""

    tokens: NDArray[numpy.int32]
    """[R] the end token included."""
    logprobs: NDArray[numpy.float32]
    """[R] of the distribution that was sampled from, temperature included."""
    finish_reason: FinishReason
    versions: tuple[VersionSpan, ...]
    """They fill [0, R) in order."""


@dataclass(frozen=True)
class Sample:
    """One response to a prompt, as the engine gave it, with its reward. Tokens in, tokens out: never text."""

    index: int
    """Place in the rollout; optimizer steps take samples in this order."""
    group_index: int
    """Samples of one prompt have it in common; advantages are relative to the group."""
    tokens: NDArray[numpy.int32]
    """[L] prompt, then response."""
    response_len: int
    """R, the last tokens of `tokens`: 1 <= R < L."""
    reward: float
    rollout_logprobs: NDArray[numpy.float32] | None = None
    """[R] the engine's, of the distribution that it sampled from (temperature included)."""
    loss_mask: NDArray[numpy.bool_] | None = None
    """[R] response tokens that are trained on; null: all of them."""
    finish_reason: FinishReason = "stop"
    weight_version: int | None = None
    """Of the weights that generated it."""
    rollout_id: int = 0
    """Rollout that it was started in."""
