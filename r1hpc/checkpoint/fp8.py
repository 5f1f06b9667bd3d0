"""Block fp8, the format of DeepSeek's checkpoints: e4m3 codes and one float32 scale a 128 x 128 block.

One format for cast, convert, export and weight sync: on a CPU and on a GPU the same input gives the same bytes. What a
weight or its scales must not hold is an error that names the tensor and the place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from r1hpc.checkpoint.fp8_checks import check_codes, check_dtype, check_finite, check_scale, check_shapes
from r1hpc.checkpoint.fp8_cpu import TileDecoder, encode
from r1hpc.checkpoint.fp8_format import AMAX_FLOOR, BLOCK, E4M3_MAX, scale_shape

__all__ = [
    "AMAX_FLOOR",
    "BLOCK",
    "E4M3_MAX",
    "Dequantizer",
    "check_quantized",
    "dequantize",
    "quantize",
    "quantize_into",
    "scale_shape",
]


def quantize(weight: Tensor, *, name: str = "weight", first_row: int = 0) -> tuple[Tensor, Tensor]:
    """Codes and scales (`scale_inv`) of a bf16 or float32 weight, of any strides.

    weight: [M, N], or [E, M, N]: equal matrices, one launch for all on a GPU. Returns codes [(E,) M, N] e4m3 and scales
    [(E,) ceil(M/128), ceil(N/128)] float32: amax / 448 with an amax of at least 1e-10, in float32; a code is the weight
    divided by its scale, rounded once to nearest even. first_row: where a band of rows begins in `name`, for the error.
    Raises CheckpointError where the weight is not finite.
    """
    check_dtype(weight, (torch.bfloat16, torch.float32), f"{name}: weight", dims=(2, 3))
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn, device=weight.device)
    scales = torch.empty(*weight.shape[:-2], *scale_shape(weight.shape[-2:]), device=weight.device)
    quantize_into(_matrices(weight), _matrices(codes), _matrices(scales))
    if not math.isfinite(scales.amax()):
        check_finite(weight, name, first_row)
    return codes, scales


def quantize_into(weights: Tensor, codes: Tensor, scales: Tensor) -> None:
    """Write the codes [E, M, N] and scales of weights [E, M, N], as `quantize` makes them; one launch on a GPU.

    Matrices of codes and of scales are contiguous, but may lie at any distance from each other. Does not wait for a
    GPU, and so raises nothing: the scale of a block that is not finite is not finite (`check_quantized`).
    """
    if weights.is_cuda:
        from r1hpc.checkpoint import fp8_triton

        fp8_triton.encode(weights, codes, scales)
    else:
        for matrix in zip(weights, codes, scales, strict=True):
            encode(*matrix)


def check_quantized(names: Sequence[str], weights: Tensor, scales: Tensor) -> None:
    """Raise CheckpointError for the first of the weights [E, M, N] that is not finite; `scales` are theirs."""
    if not math.isfinite(scales.amax()):
        for name, weight in zip(names, weights, strict=True):
            check_finite(weight, name, 0)


def dequantize(weight: Tensor, scale_inv: Tensor, *, name: str = "weight", out: Tensor | None = None) -> Tensor:
    """The bf16 values of codes and scales. See `Dequantizer`, which is faster for many."""
    return Dequantizer()(weight, scale_inv, name=name, out=out)


class Dequantizer:
    """Turns codes and scales into bf16 values, through scratch (6 MB of a CPU) that it keeps. For one thread at a time.

    A tensor can be taken in bands of rows: first_row, a multiple of 128, and the rows of `scale_inv` that belong to it.
    """

    def __init__(self) -> None:
        self._decode = TileDecoder()

    def __call__(
        self,
        weight: Tensor,
        scale_inv: Tensor,
        *,
        name: str = "weight",
        out: Tensor | None = None,
        first_row: int = 0,
    ) -> Tensor:
        """Code times scale in float32, rounded once to bf16; into `out` [(E,) M, N] where it is given.

        weight: [(E,) M, N] e4m3. scale_inv: [(E,) ceil(M/128), ceil(N/128)] float32. Returns [(E,) M, N] bf16.
        Raises CheckpointError where a code is NaN, a scale is negative, not finite or takes 448 beyond bf16, or a scale
        of zero has codes that are not zero.
        """
        check_dtype(weight, (torch.float8_e4m3fn,), f"{name}: weight", dims=(2, 3))
        check_dtype(scale_inv, (torch.float32,), f"{name}: scales", dims=(weight.dim(),))
        check_shapes(weight, scale_inv, name)
        if out is None:
            out = torch.empty(weight.shape, dtype=torch.bfloat16, device=weight.device)
        assert out.dtype == torch.bfloat16 and out.shape == weight.shape, f"{name}: out is {out.dtype} {out.shape}"
        if weight.is_cuda:
            from r1hpc.checkpoint import fp8_triton

            if fp8_triton.decode(_matrices(weight), _matrices(scale_inv), _matrices(out)):
                return out
        check_scale(weight, scale_inv, name, first_row)
        check_codes(weight, name, first_row)
        assert not weight.is_cuda, f"{name}: the GPU refused what the checks pass"
        for matrix in zip(_matrices(weight), _matrices(scale_inv), _matrices(out), strict=True):
            self._decode(*matrix)
        return out


def _matrices(tensor: Tensor) -> Tensor:
    """[E, M, N] of [M, N] or [E, M, N]."""
    return tensor if tensor.dim() == 3 else tensor.unsqueeze(0)
