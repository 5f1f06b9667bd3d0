"""Block fp8 on a GPU: one program a block, which reads and writes everything once; the bytes are those of the CPU's."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1hpc.checkpoint.fp8_format import AMAX_FLOOR, BLOCK, E4M3_MAX, MAX_SCALE

_WARPS = 8


def encode(weight: Tensor, codes: Tensor, scales: Tensor) -> None:
    """Write the codes [E, M, N] and scales [E, ceil(M/128), ceil(N/128)] of a bf16 or float32 weight [E, M, N].

    codes and scales are contiguous, the weight need not be. The scale of a block that holds NaN or an infinity is NaN.
    """
    num_matrices, row_blocks, column_blocks = scales.shape
    with torch.cuda.device_of(weight):
        _encode_block[(column_blocks, row_blocks, num_matrices)](
            weight,
            codes,
            scales,
            *weight.shape[1:],
            *weight.stride(),
            AMAX_FLOOR,
            E4M3_MAX,
            BLOCK,
            num_warps=_WARPS,
        )


def decode(codes: Tensor, scales: Tensor, out: Tensor) -> bool:
    """Write the values of codes [E, M, N] and scales [E, ceil(M/128), ceil(N/128)] to out [E, M, N] bf16, any strides.

    Returns whether every scale and code was one that the format has; waits for the GPU to know it.
    """
    num_matrices, row_blocks, column_blocks = scales.shape
    scales = scales.contiguous()
    wrong = torch.empty(scales.shape, dtype=torch.bool, device=codes.device)
    with torch.cuda.device_of(codes):
        _decode_block[(column_blocks, row_blocks, num_matrices)](
            codes.view(torch.uint8),
            scales,
            out,
            wrong,
            *codes.shape[1:],
            *codes.stride(),
            *out.stride(),
            MAX_SCALE,
            BLOCK,
            num_warps=_WARPS,
        )
    return not bool(wrong.any())


@triton.jit
def _encode_block(
    weight,
    codes,
    scales,
    num_rows,
    num_columns,
    matrix_stride,
    row_stride,
    column_stride,
    amax_floor: tl.constexpr,
    e4m3_max: tl.constexpr,
    block: tl.constexpr,
):
    column_block, row_block = tl.program_id(0), tl.program_id(1)
    # 256 experts of 2048 x 7168 are more numbers than 32 bits count.
    matrix = tl.program_id(2).to(tl.int64)
    rows = (row_block * block + tl.arange(0, block))[:, None].to(tl.int64)
    columns = (column_block * block + tl.arange(0, block))[None, :]
    inside = (rows < num_rows) & (columns < num_columns)
    place = matrix * matrix_stride + rows * row_stride + columns.to(tl.int64) * column_stride
    values = tl.load(weight + place, mask=inside, other=0.0).to(tl.float32)
    # The maximum of the bits, not of the floats: tl.max and tl.maximum pass over NaN.
    bits = tl.max(tl.max(values.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1), axis=0)
    amax = tl.maximum(bits.to(tl.float32, bitcast=True), amax_floor)
    # `/` divides approximately on a GPU, which changes about one byte in a thousand.
    scale = tl.where(bits < 0x7F800000, tl.div_rn(amax, e4m3_max), float("nan"))
    quotients = tl.div_rn(values, tl.broadcast_to(scale, (block, block)))
    into = (matrix * num_rows + rows) * num_columns + columns
    tl.store(codes + into, quotients.to(tl.float8e4nv), mask=inside)
    tl.store(scales + (matrix * tl.num_programs(1) + row_block) * tl.num_programs(0) + column_block, scale)


@triton.jit
def _decode_block(
    codes,
    scales,
    out,
    wrong,
    num_rows,
    num_columns,
    matrix_stride,
    row_stride,
    column_stride,
    out_matrix_stride,
    out_row_stride,
    out_column_stride,
    max_scale: tl.constexpr,
    block: tl.constexpr,
):
    column_block, row_block = tl.program_id(0), tl.program_id(1)
    matrix = tl.program_id(2).to(tl.int64)
    rows = (row_block * block + tl.arange(0, block))[:, None].to(tl.int64)
    columns = (column_block * block + tl.arange(0, block))[None, :].to(tl.int64)
    inside = (rows < num_rows) & (columns < num_columns)
    place = matrix * matrix_stride + rows * row_stride + columns * column_stride
    read = tl.load(codes + place, mask=inside, other=0)
    scale_place = (matrix * tl.num_programs(1) + row_block) * tl.num_programs(0) + column_block
    scale = tl.load(scales + scale_place)
    values = read.to(tl.float8e4nv, bitcast=True).to(tl.float32) * scale
    into = matrix * out_matrix_stride + rows * out_row_stride + columns * out_column_stride
    tl.store(out + into, values.to(tl.bfloat16), mask=inside)
    largest = tl.max(tl.max((read & 0x7F).to(tl.int32), axis=1), axis=0)
    right = (scale >= 0) & (scale <= max_scale) & (largest < 0x7F) & ((scale > 0) | (largest == 0))
    tl.store(wrong + scale_place, right == 0)
