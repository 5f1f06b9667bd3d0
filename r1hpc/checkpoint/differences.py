"""Where two tensors are not the same bits: zeros of either sign are equal as numbers, and no NaN is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

_INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Differences:
    """Elements that differ, counted part by part."""

    def __init__(self) -> None:
        self.count = 0
        self.first = ""
        """Place and both values of the first one."""

    def add(self, offset: Sequence[int], held: Tensor, expected: Tensor) -> None:
        """Compare a part of two tensors of one dtype that begins at `offset`."""
        if _same_bytes(held, expected):
            return
        wrong = _bits(held) != _bits(expected)
        if not self.count:
            at = wrong.nonzero()[0].tolist()
            index = [begin + step for begin, step in zip(offset, at, strict=True)]
            self.first = f"{index}: {held[tuple(at)].item()!r} where {expected[tuple(at)].item()!r} is expected"
        self.count += int(wrong.sum())


def in_step(
    one: Iterable[tuple[int, Tensor]], other: Iterable[tuple[int, Tensor]]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(first row, rows of one, the same rows of the other) of two tensors that come in bands of different heights."""
    others = iter(other)
    begin, theirs = next(others)
    for row, mine in one:
        first, end = row, row + len(mine)
        while first < end:
            if first == begin + len(theirs):
                begin, theirs = next(others)
            stop = min(end, begin + len(theirs))
            yield first, mine[first - row : stop - row], theirs[first - begin : stop - begin]
            first = stop


def _bits(values: Tensor) -> Tensor:
    return values.view(_INTEGER[values.dtype.itemsize])


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    """torch.equal goes element by element: the wider, the faster."""
    a, b = (tensor.contiguous().view(-1).view(torch.uint8) for tensor in (one, other))
    whole = a.numel() // 8 * 8
    return torch.equal(a[:whole].view(torch.int64), b[:whole].view(torch.int64)) and torch.equal(a[whole:], b[whole:])
