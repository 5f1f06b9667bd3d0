# Triton reads the annotations of a kernel, and its decorator has no types.
# mypy: disable-error-code="untyped-decorator,no-untyped-def,no-untyped-call"
"""Block fp8 on a GPU: one program a block, which reads and writes everything once; the bytes are those of the CPU's."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1hpc.checkpoint.fp8_format import AMAX_FLOOR, BLOCK, E4M3_MAX, MAX_SCALE

MAX_STRIDE = 1 << 24
"""Places within a block are counted in 32 bits, which is a tenth faster; strides of a matrix are below this."""
_STEPS = {torch.bfloat16: 1, torch.float32: 2}
"""Of refinement. For the quotient of a bfloat16 and a scale that is one, divided by 448, the first rounds correctly: so
said a comparison of all their mantissas (tests/checkpoint/test_quotients.py)."""
_ENCODE_WARPS = 4
_DECODE_WARPS = 8


def encode(weight: Tensor, codes: Tensor, scales: Tensor) -> None:
    """Write the codes [E, M, N] and scales [E, ceil(M/128), ceil(N/128)] of a bf16 or float32 weight [E, M, N].

    Each matrix of codes and of scales is contiguous, a weight need not be; matrices may lie at any distance. The scale
    of a block that holds NaN or an infinity is NaN.
    """
    num_matrices, row_blocks, column_blocks = scales.shape
    assert codes[0].is_contiguous() and scales[0].is_contiguous(), f"strides {codes.stride()}, {scales.stride()}"
    _check_strides(weight, codes)
    whole = weight.shape[1] % BLOCK == 0 and weight.shape[2] % BLOCK == 0
    with torch.cuda.device_of(weight):
        _encode_block[(column_blocks, row_blocks, num_matrices)](
            weight,
            codes,
            scales,
            *weight.shape[1:],
            *weight.stride(),
            codes.stride(0),
            scales.stride(0),
            AMAX_FLOOR,
            E4M3_MAX,
            BLOCK,
            whole,
            _STEPS[weight.dtype],
            num_warps=_ENCODE_WARPS,
        )


def decode(codes: Tensor, scales: Tensor, out: Tensor) -> bool:
    """Write the values of codes [E, M, N] and scales [E, ceil(M/128), ceil(N/128)] to out [E, M, N] bf16, any strides.

    Returns whether every scale and code is one that the format has; waits for the GPU to know it.
    """
    num_matrices, row_blocks, column_blocks = scales.shape
    _check_strides(codes, out)
    wrong = torch.empty(scales.shape, dtype=torch.bool, device=codes.device)
    with torch.cuda.device_of(codes):
        _decode_block[(column_blocks, row_blocks, num_matrices)](
            codes.view(torch.uint8),
            scales.contiguous(),
            out,
            wrong,
            *codes.shape[1:],
            *codes.stride(),
            *out.stride(),
            MAX_SCALE,
            BLOCK,
            num_warps=_DECODE_WARPS,
        )
    return not bool(wrong.any())


def _check_strides(*tensors: Tensor) -> None:
    for tensor in tensors:
        assert max(tensor.stride()[1:]) < MAX_STRIDE, f"strides {tensor.stride()} reach {MAX_STRIDE}"


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
    codes_stride,
    scales_stride,
    amax_floor: tl.constexpr,
    e4m3_max: tl.constexpr,
    block: tl.constexpr,
    whole: tl.constexpr,
    steps: tl.constexpr,
):
    # Where a block begins is counted in 64 bits: a stack of experts has more numbers than 32 bits count.
    column_block, row_block, matrix = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    first_row, first_column = row_block.to(tl.int64) * block, column_block.to(tl.int64) * block
    rows, columns = tl.arange(0, block)[:, None], tl.arange(0, block)[None, :]
    places = rows * row_stride + columns * column_stride

    begin = weight + matrix * matrix_stride + first_row * row_stride + first_column * column_stride
    if whole:
        values = tl.load(begin + places).to(tl.float32)
    else:
        inside = (rows < num_rows - row_block * block) & (columns < num_columns - column_block * block)
        values = tl.load(begin + places, mask=inside, other=0.0).to(tl.float32)
    largest = tl.reduce(tl.reduce(tl.abs(values), 1, _larger_or_nan), 0, _larger_or_nan)
    scale = tl.where(largest < float("inf"), tl.div_rn(tl.maximum(largest, amax_floor), e4m3_max), float("nan"))
    found = _quotients(values, scale, steps).to(tl.float8e4nv)

    begin = codes + matrix * codes_stride + first_row * num_columns + first_column
    if whole:
        tl.store(begin + (rows * num_columns + columns), found)
    else:
        tl.store(begin + (rows * num_columns + columns), found, mask=inside)
    tl.store(scales + matrix * scales_stride + row_block * tl.num_programs(0) + column_block, scale)


@triton.jit
def _larger_or_nan(one, other):
    # tl.max passes over NaN.
    return tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _quotients(values, scale, steps: tl.constexpr):
    """values / scale, correctly rounded where the code depends on it; tl.div_rn of every number is a tenth slower.

    `/` is approximate on a GPU and changes codes. Here steps refine a product with the rounded reciprocal, which is off
    by less than two units in the last place: one leaves less than one, from where the next rounds correctly (Markstein
    1990). Values below 2^-102, where a remainder may not be exact, have the code 0, since no scale is below 2^-43.
    """
    reciprocal = tl.div_rn(1.0, scale)
    quotients = values * reciprocal
    # With signs in this order a zero keeps its own. Triton's minus is 0 - x, which makes 0.0 of 0.0.
    against, away = values * -1.0, reciprocal * -1.0
    for _ in tl.static_range(steps):
        quotients = tl.fma(tl.fma(quotients, scale, against), away, quotients)
    return quotients


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
    column_block, row_block, matrix = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    first_row, first_column = row_block.to(tl.int64) * block, column_block.to(tl.int64) * block
    rows, columns = tl.arange(0, block)[:, None], tl.arange(0, block)[None, :]
    inside = (rows < num_rows - row_block * block) & (columns < num_columns - column_block * block)

    begin = codes + matrix * matrix_stride + first_row * row_stride + first_column * column_stride
    read = tl.load(begin + (rows * row_stride + columns * column_stride), mask=inside, other=0)
    scale_place = (matrix * tl.num_programs(1) + row_block) * tl.num_programs(0) + column_block
    scale = tl.load(scales + scale_place)
    values = read.to(tl.float8e4nv, bitcast=True).to(tl.float32) * scale
    begin = out + matrix * out_matrix_stride + first_row * out_row_stride + first_column * out_column_stride
    tl.store(begin + (rows * out_row_stride + columns * out_column_stride), values.to(tl.bfloat16), mask=inside)

    largest = tl.max(tl.max((read & 0x7F).to(tl.int32), axis=1), axis=0)
    right = (scale >= 0) & (scale <= max_scale) & (largest < 0x7F) & ((scale > 0) | (largest == 0))
    tl.store(wrong + scale_place, right == 0)
