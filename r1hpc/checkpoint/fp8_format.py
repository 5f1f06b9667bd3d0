"""The numbers of block fp8, the format of DeepSeek's checkpoints: e4m3 codes, a float32 scale a block of 128 x 128."""

from __future__ import annotations

from collections.abc import Sequence

BLOCK = 128
"""Rows and columns of a block; the last of each may be partial."""
E4M3_MAX = 448.0
"""The largest e4m3 value. There are no infinities: a code whose 7 low bits are all set is NaN."""
QUANTIZATION = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [BLOCK, BLOCK],
}
"""What config.json says of it."""
AMAX_FLOOR = 1e-10
"""A block with nothing larger is scaled as if it had this, so that a block of zeros has no scale of zero."""
MAX_SCALE = 3.3895313892515355e38 / E4M3_MAX
"""With a larger scale the largest code would be beyond bf16."""


def scale_shape(shape: Sequence[int]) -> tuple[int, int]:
    """The shape of the scales of a [M, N] weight: one a block, whole or partial."""
    rows, columns = shape
    return -(-rows // BLOCK), -(-columns // BLOCK)
