"""Block fp8 on a CPU: tiles that stay in the cache, and only operations that torch vectorizes.

torch converts float32 to e4m3 with vector instructions, but e4m3 to anything else one number at a time. Decoding
therefore goes by float16, which has room for every e4m3 value and whose conversion every x86 and Arm server has.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from r1hpc.checkpoint.fp8_format import AMAX_FLOOR, BLOCK, E4M3_MAX

TILE = 1 << 20
"""Numbers converted at a time: 4 MB of float32 and 2 MB of float16. Any size gives the same bytes."""

# An e4m3 code is sign, 4 bits of exponent, 3 of mantissa. Moved left by 7, with the sign extended and the copies of it
# masked out, it is a float16, whose exponent is biased by 15 and not 7: 2^-8 of the value, exactly, subnormals too.
_SHIFT = 1 << 7
_MASK = -0x4080
_BIAS = 2.0**8


class TileDecoder:
    """Turns codes and scales into bf16 values, through scratch that it keeps. For one thread at a time."""

    def __init__(self) -> None:
        self._bits = torch.empty(0, dtype=torch.int16)
        self._values = torch.empty(0)

    def __call__(self, codes: Tensor, scale: Tensor, out: Tensor) -> None:
        """Write the values of codes [M, N] and scale [ceil(M/128), ceil(N/128)] to out [M, N]; no code may be NaN."""
        self._grow(_largest_tile(codes))
        factors = (scale * _BIAS).repeat_interleave(BLOCK, 1)
        for rows, columns in _tiles(codes):
            tile = codes.view(torch.int8)[rows, columns]
            bits = self._bits[: tile.numel()].view(tile.shape)
            bits.copy_(tile).mul_(_SHIFT).bitwise_and_(_MASK)
            values = self._values[: tile.numel()].view(tile.shape).copy_(bits.view(torch.float16))
            _row_blocks(values).mul_(factors[_blocks(rows), columns].unsqueeze(1))
            out[rows, columns] = values

    def _grow(self, size: int) -> None:
        if self._values.numel() < size:
            self._bits = torch.empty(size, dtype=torch.int16)
            self._values = torch.empty(size)


def encode(weight: Tensor, codes: Tensor, scale: Tensor) -> None:
    """Write the codes [M, N] and scales [ceil(M/128), ceil(N/128)] of a bf16 or float32 weight [M, N].

    The scale of a block that holds NaN or an infinity is not finite, and its codes mean nothing.
    """
    scratch = torch.empty(_largest_tile(weight))
    for rows, columns in _tiles(weight):
        tile = weight[rows, columns]
        tile_scale = _block_amax(tile, scratch).clamp_min_(AMAX_FLOOR).div_(E4M3_MAX)
        scale[_blocks(rows), _blocks(columns)] = tile_scale
        values = scratch[: tile.numel()].view(tile.shape).copy_(tile)
        # No clamp is needed: a quotient is 448 * (1 + 2^-23) at most, which rounds to 448.
        _row_blocks(values).div_(tile_scale.repeat_interleave(BLOCK, 1)[:, : tile.shape[1]].unsqueeze(1))
        codes[rows, columns] = values


def _block_amax(tile: Tensor, scratch: Tensor) -> Tensor:
    """Largest magnitude of each block of a tile, float32; NaN or infinite where the block holds one.

    Without its sign a float orders as the integer of its bits, NaN above all; the maximum of integers is vectorized.
    """
    integer, no_sign = (torch.int16, 0x7FFF) if tile.dtype == torch.bfloat16 else (torch.int32, 0x7FFFFFFF)
    magnitudes = scratch.view(integer)[: tile.numel()].view(tile.shape)
    torch.bitwise_and(tile.view(integer), no_sign, out=magnitudes)
    of_columns = _row_blocks(magnitudes).amax(1)
    of_blocks = pad(of_columns, (0, -tile.shape[1] % BLOCK)).view(len(of_columns), -1, BLOCK).amax(2)
    return of_blocks.view(tile.dtype).to(torch.float32, copy=True)


def _tiles(weight: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the tiles of a weight: whole blocks of rows, or fewer rows than one block."""
    num_rows, num_columns = weight.shape
    width = min(num_columns, TILE // BLOCK)
    height = max(1, TILE // (BLOCK * width)) * BLOCK
    row = 0
    while row < num_rows:
        left = num_rows - row
        rows = slice(row, row + (min(height, left // BLOCK * BLOCK) or left))
        for column in range(0, num_columns, width):
            yield rows, slice(column, min(column + width, num_columns))
        row = rows.stop


def _largest_tile(weight: Tensor) -> int:
    return min(TILE, weight.numel())


def _blocks(numbers: slice) -> slice:
    return slice(numbers.start // BLOCK, -(-numbers.stop // BLOCK))


def _row_blocks(tile: Tensor) -> Tensor:
    """A contiguous tile as [row blocks, rows in each, columns]."""
    return tile.view(-1, min(BLOCK, len(tile)), tile.shape[1])
