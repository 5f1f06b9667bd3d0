"""A checksum of bytes that costs one pass, on whatever device they are on."""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 1 << 23
"""64-bit words at a time: the products are as many, 64 MiB. A GPU would take longer to launch smaller ones."""
_FACTOR = 6364136223846793005
"""Odd, so that no word is lost in a product modulo 2^64. Knuth's multiplier for 64 bits."""


def checksum(data: Tensor) -> int:
    """Of the bytes of `data`, in their order: [N] uint8, N a multiple of 8, from an address that is one.

    The sum of word i times (2 i + 1), chunk by chunk, modulo 2^64: it notices bytes that were changed, moved or left
    as another payload had them. It is no defence against somebody who wants it to come out right.
    """
    words = data.view(torch.int64)
    weights = torch.arange(1, 2 * min(_CHUNK, max(1, len(words))), 2, device=data.device)
    total = torch.zeros((), dtype=torch.int64, device=data.device)
    for begin in range(0, len(words), _CHUNK):
        chunk = words[begin : begin + _CHUNK]
        total = total * _FACTOR + (chunk * weights[: len(chunk)]).sum()
    return int(total.item())
