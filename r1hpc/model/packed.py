"""Sequences packed one after another, and the share of them that a context-parallel rank holds.

With context parallelism of n, each sequence is cut into 2n equal chunks and rank r holds chunks r and 2n-1-r (zig-zag):
under a causal mask every rank then has the same work. A rank's tokens are its share of the first sequence, then of the
second, and so on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Chunk:
    """Neighboring tokens of one sequence that a context rank holds: the unit of attention."""

    local: slice
    """Where they lie among the rank's own tokens."""
    whole: slice
    """Where they lie among the tokens of all whole sequences, one after another."""
    before: slice
    """The tokens of their sequence that precede them, among the same; empty for its first chunk."""

    @property
    def has_before(self) -> bool:
        return bool(self.before.start < self.before.stop)


@dataclass(frozen=True)
class PackedSequences:
    """The sequences of one micro-batch. Indices are built once, on the host, and used by every layer."""

    lengths: tuple[int, ...]
    """Of the whole sequences, padding included; each a multiple of 2 * cp_size where cp_size > 1."""
    cp_rank: int
    cp_size: int
    positions: Tensor
    """[T] int64: place in its own sequence of each token of this rank; T = sum(lengths) / cp_size."""
    gathered_order: Tensor | None
    """[T * cp_size] int64: all ranks' tokens, rank by rank, indexed with it are whole sequences; null at cp_size 1."""
    computed: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)
    """What a layer worked out from the positions, for the layers after it; lives as long as the micro-batch."""

    @property
    def local_tokens(self) -> int:
        """T."""
        return sum(self.lengths) // self.cp_size

    @cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        """The chunks that this rank holds, in the order of its tokens; their `local` slices cover all T of them."""
        chunks, local, begin = [], 0, 0
        for length in self.lengths:
            for first, size in _own_chunks(length, self.cp_rank, self.cp_size):
                whole = slice(begin + first, begin + first + size)
                chunks.append(Chunk(slice(local, local + size), whole, slice(begin, whole.start)))
                local += size
            begin += length
        return tuple(chunks)


def pack_sequences(
    lengths: Sequence[int], cp_rank: int = 0, cp_size: int = 1, device: torch.device | str = "cpu"
) -> PackedSequences:
    """The share of rank `cp_rank` of sequences of these (padded, whole) lengths.

    Raises ValueError for a length that cannot be cut into 2 * cp_size equal chunks, or is not positive.
    """
    for number, length in enumerate(lengths):
        if length < 1 or (cp_size > 1 and length % (2 * cp_size)):
            raise ValueError(
                f"sequence {number} has {length} tokens; with {cp_size} context ranks it must be padded to a positive"
                f" multiple of {2 * cp_size if cp_size > 1 else 1}"
            )
    shares = [local_positions(lengths, rank, cp_size) for rank in range(cp_size)]
    return PackedSequences(
        lengths=tuple(lengths),
        cp_rank=cp_rank,
        cp_size=cp_size,
        positions=shares[cp_rank].to(device),
        gathered_order=_gathered_order(lengths, shares).to(device) if cp_size > 1 else None,
    )


def local_positions(lengths: Sequence[int], cp_rank: int, cp_size: int) -> Tensor:
    """[T] int64: the places, each in its own sequence, of the tokens that a context rank holds, in its order."""
    shares = [torch.empty(0, dtype=torch.int64)]
    for length in lengths:
        shares += [torch.arange(first, first + size) for first, size in _own_chunks(length, cp_rank, cp_size)]
    return torch.cat(shares)


def local_indices(lengths: Sequence[int], cp_rank: int, cp_size: int) -> Tensor:
    """[T] int64: where the tokens of a context rank lie among the tokens of all whole sequences, one after another."""
    starts, begin = [], 0
    for length in lengths:
        starts.append(torch.full((length // cp_size,), begin))
        begin += length
    if not starts:
        return torch.empty(0, dtype=torch.int64)
    return local_positions(lengths, cp_rank, cp_size) + torch.cat(starts)


def _own_chunks(length: int, cp_rank: int, cp_size: int) -> list[tuple[int, int]]:
    """Begin and size of each chunk of a sequence of this length that a context rank holds."""
    if cp_size == 1:
        return [(0, length)]
    size = length // (2 * cp_size)
    return [(chunk * size, size) for chunk in (cp_rank, 2 * cp_size - 1 - cp_rank)]


def _gathered_order(lengths: Sequence[int], shares: Sequence[Tensor]) -> Tensor:
    """The inverse of dealing the packed tokens to the ranks."""
    cp_size = len(shares)
    return torch.cat([local_indices(lengths, rank, cp_size) for rank in range(cp_size)]).argsort()
