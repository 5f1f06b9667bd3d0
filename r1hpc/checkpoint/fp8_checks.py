"""What a weight and its scales must not hold; each error names the tensor, the place, the rule and the fix."""

from __future__ import annotations

import torch
from torch import Tensor

from r1hpc.checkpoint.fp8_format import BLOCK, MAX_SCALE, scale_shape
from r1hpc.errors import CheckpointError

DAMAGED = "the file is damaged or was written wrongly; get it again"
NAN = 0x7F
"""The low 7 bits of both NaN codes."""


def check_dtype(tensor: Tensor, allowed: tuple[torch.dtype, ...], what: str, dims: tuple[int, ...]) -> None:
    """A tensor is of an allowed dtype and number of dimensions, and holds something."""
    if tensor.dtype not in allowed:
        given, *takes = (str(dtype).removeprefix("torch.") for dtype in (tensor.dtype, *allowed))
        raise CheckpointError(f"{what} of {given}; block fp8 takes {' or '.join(takes)}")
    if tensor.dim() not in dims or tensor.numel() == 0:
        kinds = " or ".join({2: "[M, N]", 3: "[E, M, N]"}[dim] for dim in dims)
        raise CheckpointError(f"{what} of shape {list(tensor.shape)}; block fp8 takes {kinds}, not empty")


def check_shapes(codes: Tensor, scale: Tensor, name: str) -> None:
    """There is one scale for each block."""
    rows, columns = codes.shape[-2:]
    needed = [*codes.shape[:-2], *scale_shape((rows, columns))]
    if list(scale.shape) != needed:
        raise CheckpointError(
            f"{name}: scales {list(scale.shape)} do not fit weight {list(codes.shape)}: "
            f"one a block of {BLOCK} x {BLOCK}, so ceil({rows}/{BLOCK}) x ceil({columns}/{BLOCK}), makes {needed}"
        )


def check_finite(weight: Tensor, name: str, first_row: int) -> None:
    """No number of a weight is NaN or infinite."""
    if place := _first(~weight.isfinite()):
        raise CheckpointError(
            f"{name}: {weight[place].item()} at {_shown(place, first_row)}; only finite numbers can be quantized, "
            "so the training that made it diverged or its file is damaged"
        )


def check_codes(codes: Tensor, name: str, first_row: int) -> None:
    """No code is NaN: that is the largest of all signed bytes (0x7f) or of all unsigned ones (0xff)."""
    if int(codes.view(torch.int8).amax()) < NAN and int(codes.view(torch.uint8).amax()) < 0xFF:
        return
    if place := _first(codes.view(torch.uint8).bitwise_and(NAN) == NAN):
        raise CheckpointError(f"{name}: NaN at {_shown(place, first_row)}; weights are finite numbers, so {DAMAGED}")


def check_scale(codes: Tensor, scale: Tensor, name: str, first_row: int) -> None:
    """Every scale is finite, not negative and keeps 448 within bf16; one of zero is over zeros only."""
    if place := _first(~((scale >= 0) & (scale <= MAX_SCALE))):
        raise CheckpointError(
            f"{name}: scale {scale[place].item():g} of block {_shown(place, first_row // BLOCK)}; "
            f"a scale is between 0 and {MAX_SCALE:.4g} (above, 448 * scale is beyond bf16), so {DAMAGED}"
        )
    for place in (scale == 0).nonzero().tolist():
        *matrix, row, column = place
        rows, columns = (slice(block * BLOCK, (block + 1) * BLOCK) for block in (row, column))
        if bool(codes.view(torch.uint8)[(*matrix, rows, columns)].bitwise_and(NAN).any()):
            raise CheckpointError(
                f"{name}: scale 0 of block {_shown(tuple(place), first_row // BLOCK)}, whose codes are not all 0; "
                f"every weight in it would become 0, so {DAMAGED}"
            )


def _first(where: Tensor) -> tuple[int, ...] | None:
    """The first place where it is true; the whole list of places is made only when there is one."""
    return tuple(where.nonzero()[0].tolist()) if bool(where.any()) else None


def _shown(place: tuple[int, ...], first_row: int) -> list[int]:
    *matrix, row, column = place
    return [*matrix, first_row + row, column]
