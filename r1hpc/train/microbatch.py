"""One micro-batch as a rank sees it: packed tokens, and for every logit what is to be learned from it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from r1hpc.model.packed import PackedSequences


@dataclass(frozen=True)
class MicroBatch:
    """The packed samples of one micro-batch, this context rank's share.

    Arrays of [T] are aligned with the logits: entry t is about the token that follows token t in its sequence, which
    with context parallelism may lie on another rank. S samples; entry S of the [S + 1] arrays stands for padding.
    """

    samples: tuple[int, ...]
    """Places in the rollout of the S samples, in their order here."""
    tokens: Tensor
    """[T] int64, padding 0."""
    sequences: PackedSequences
    """The samples, each padded by itself, and at the end one of padding where the sum needs it."""
    targets: Tensor
    """[T] int64: the next token; 0 where there is none."""
    loss_mask: Tensor
    """[T] bool: the next token is a response token that is trained on."""
    rows: Tensor
    """[N] int64: where `loss_mask` is true. Their log-probs are all that is ever computed."""
    response_mask: Tensor
    """[T] bool: the next token is a response token."""
    sample_of: Tensor
    """[T] int64: which of the S samples; S in padding."""
    mask_sums: Tensor
    """[S + 1] float32: trained tokens of each whole sample, on all context ranks together, maybe 0; 1 for padding."""
    rollout_logprobs: Tensor | None
    """[T] float32: the engine's, 0 outside the response; null where the samples have none."""
