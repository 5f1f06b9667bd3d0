"""The tensors that an engine is sent for one weight: names, dtypes, shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from r1hpc.checkpoint.fp8_format import scale_shape
from r1hpc.checkpoint.names import TensorName
from r1hpc.sync.form import SyncForm

SCALE = "_scale_inv"
"""What a weight's name is followed by to name its scales."""


@dataclass(frozen=True)
class SentTensor:
    """One tensor of a payload."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Of its elements."""
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count


def sent_tensors(name: TensorName, dtype: torch.dtype, form: SyncForm) -> tuple[SentTensor, ...]:
    """What a weight of `dtype` is sent as: itself, and its scales behind it where it is quantised."""
    if not name.quantized or form is SyncForm.PLAIN:
        return (SentTensor(name.hf, dtype, name.shape),)
    if form is SyncForm.DEQUANTIZED:
        return (SentTensor(name.hf, torch.bfloat16, name.shape),)
    return (
        SentTensor(name.hf, torch.float8_e4m3fn, name.shape),
        SentTensor(name.hf + SCALE, torch.float32, scale_shape(name.shape)),
    )


def is_sent_as_it_is(name: TensorName, form: SyncForm) -> bool:
    """Whether the weight can be put together where it is sent from."""
    return form is SyncForm.PLAIN or not name.quantized
