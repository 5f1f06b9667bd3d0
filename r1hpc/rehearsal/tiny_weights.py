"""The values of a tiny model's tensors: each a pure function of the seed and the tensor's name."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from r1hpc.checkpoint.fp8 import quantize, scale_shape
from r1hpc.checkpoint.names import TensorName

SCALE_SUFFIX = "_scale_inv"
_LEVELS = 1 << 16
_CHUNK_WORDS = 1 << 14
"""64-bit random words drawn at a time, 4 values each: 128 KiB, so that they stay in the cache."""


def stored_sizes(names: Iterable[TensorName], fp8: bool) -> Iterator[tuple[str, int]]:
    """Name and bytes of every tensor that the checkpoint stores, scales included, in the order of `stored_tensors`."""
    for name in names:
        count = math.prod(name.shape)
        if fp8 and name.quantized:
            yield name.hf, count
            yield name.hf + SCALE_SUFFIX, 4 * math.prod(scale_shape(name.shape))
        else:
            yield name.hf, (4 if name.float32 else 2) * count


def stored_tensors(
    names: Iterable[TensorName], fp8: bool, values_of: Callable[[TensorName], Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that the checkpoint stores, one at a time; a quantized weight is followed by its scales.

    values_of: bf16, or float32 where the name says so.
    """
    for name in names:
        values = values_of(name)
        if fp8 and name.quantized:
            codes, scales = quantize(values, name=name.hf)
            yield name.hf, codes
            yield name.hf + SCALE_SUFFIX, scales
        else:
            yield name.hf, values


def tensor_values(name: TensorName, seed: int) -> Tensor:
    """The bf16 (or float32) values of one tensor before any quantization; a copy has those of what it repeats.

    Each value is one of 65,536 levels, chosen by 16 random bits: five times as fast as drawing normal numbers.
    """
    source = name.copy_of or name.hf
    digest = hashlib.sha256(f"{seed} {source}".encode()).digest()
    generator = np.random.SFC64(int.from_bytes(digest))
    levels = _levels(source, name, spread=0.75 + 0.5 * digest[0] / 256)
    table = levels.view(torch.int32 if name.float32 else torch.int16).numpy()
    count = math.prod(name.shape)
    values = np.empty(count, dtype=table.dtype)
    for begin in range(0, count, 4 * _CHUNK_WORDS):
        out = values[begin : begin + 4 * _CHUNK_WORDS]
        # The raw stream of a bit generator is fixed by numpy for good, unlike what its distributions draw.
        choices = generator.random_raw(-(-len(out) // 4)).view(np.uint16)[: len(out)]
        # Every choice is in the table; mode "clip" only spares take() the check, at twice the speed.
        np.take(table, choices, out=out, mode="clip")
    return torch.from_numpy(values).view(levels.dtype).view(name.shape)


def _levels(source: str, name: TensorName, spread: float) -> Tensor:
    """The values that a tensor's elements may have, all equally likely: quantiles of its distribution."""
    probabilities = (torch.arange(_LEVELS, dtype=torch.float64) + 0.5) / _LEVELS
    if name.float32:
        return (0.2 * probabilities).float()
    normal: Tensor = torch.special.ndtri(probabilities)
    if len(name.shape) == 1:
        return (1 + 0.1 * normal).bfloat16()
    return (_deviation(source, name.shape[1], spread) * normal).bfloat16()


def _deviation(source: str, columns: int, spread: float) -> float:
    """Standard deviation of a matrix that keeps what passes through the model of order 1, and its logits of order 2.

    spread: 0.75 to 1.25, of this one tensor. Were it the same for all, blocks of different tensors would often have
    equal scales, and a checkpoint with scales mixed up could pass for the right one.
    """
    if source == "model.embed_tokens.weight":
        return 1.0
    return (2.0 if source == "lm_head.weight" else spread) / math.sqrt(columns)
