"""Memory that is kept between uses: a fresh tensor for each band would cost a page fault every 4 kB."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Scratch:
    """Hands out the same memory each time, grown to the largest tensor asked for."""

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def tensor(self, sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialized tensor, valid until the next one is asked for."""
        count = torch.Size(sizes).numel() * dtype.itemsize
        if self._bytes.numel() < count:
            self._bytes = torch.empty(count, dtype=torch.uint8)
        return self._bytes[:count].view(dtype).view(*sizes)
