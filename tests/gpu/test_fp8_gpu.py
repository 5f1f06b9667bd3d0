"""Block fp8 on a GPU gives the bytes of the CPU. Needs no more than torch, Triton, numpy and pytest."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from r1hpc.checkpoint.fp8 import Dequantizer, dequantize, quantize, quantize_into, scale_shape
from r1hpc.errors import CheckpointError

HAS_E4M3 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HAS_E4M3, reason="needs an NVIDIA GPU of compute capability 8.9 or more"),
]

SHAPES = [(1, 1), (1, 129), (129, 1), (128, 128), (576, 7168), (200, 300), (3, 130, 200), (16, 512, 384)]
EXPONENTS = [(-1, 1), (-12, 12), (-30, 0), (-126, 127), (-149, -100), (-45, -25)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("exponents", EXPONENTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_quantize_gives_the_bytes_of_the_cpu(
    shape: tuple[int, ...], exponents: tuple[int, int], dtype: torch.dtype
) -> None:
    assert_quantized_alike(finite(shape, exponents, dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_quotients_are_rounded_alike_in_many_numbers(dtype: torch.dtype) -> None:
    assert_quantized_alike(finite((8, 2048, 2048), (-9, 0), dtype))


def test_quotients_beside_the_middle_of_two_codes_are_rounded_alike() -> None:
    # Codes' midpoints times a scale, and the float32 neighbors of that: what an approximate division gets wrong.
    values = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    midpoints = (values[1:] + values[:-1]) / 2
    scales = torch.rand(4096, 1, generator=torch.Generator().manual_seed(1)) + 0.5
    products = (midpoints * scales).view(torch.int32)
    near = torch.cat([(products + step).view(torch.float32) for step in range(-4, 5)], 1)
    blocks = torch.zeros(4096, 128, 128)
    blocks.view(4096, -1)[:, : near.shape[1]] = near
    blocks[:, 127, 127] = (scales * 448).view(-1)
    assert_quantized_alike(blocks)


@pytest.mark.parametrize("magnitude", [1e-38, 3e-42, 2e-13, 0.7, 300.0, 7e35])
@pytest.mark.parametrize("shape", SHAPES)
def test_dequantize_gives_the_bytes_of_the_cpu(shape: tuple[int, ...], magnitude: float) -> None:
    random = np.random.default_rng(2)
    codes = torch.from_numpy(random.integers(0, 127, shape) | random.choice([0, 128], shape)).to(torch.uint8)
    factors = random.uniform(0.5, 1, (*shape[:-2], *scale_shape(shape[-2:])))
    scale = torch.from_numpy((factors * magnitude).astype(np.float32))
    weight = codes.view(torch.float8_e4m3fn)
    assert_same_bytes(dequantize(weight.cuda(), scale.cuda()), dequantize(weight, scale))


def test_strides_change_nothing() -> None:
    whole = finite((400, 700), (-3, 3), torch.bfloat16).cuda()
    for view in (whole.T, whole[1::2, 3::5], whole[:, 40:300], whole[:1].expand(200, -1)):
        codes, scale = quantize(view)
        want_codes, want_scale = quantize(view.cpu())
        assert_same_bytes(codes, want_codes)
        assert_same_bytes(scale, want_scale)
        strided_codes, strided_scale, out = (
            torch.stack([tensor, tensor], 2)[:, :, 1] for tensor in (codes, scale, torch.zeros_like(view))
        )
        assert dequantize(strided_codes, strided_scale, out=out) is out
        assert_same_bytes(out, dequantize(want_codes, want_scale))


def test_matrices_may_be_written_at_any_distance() -> None:
    weights = finite((5, 130, 200), (-9, 0), torch.bfloat16)
    room = torch.full((5, 1 << 16), 0xAB, dtype=torch.uint8, device="cuda")
    codes = room.view(torch.float8_e4m3fn).as_strided((5, 130, 200), (1 << 16, 200, 1))
    scales = room.view(torch.float32).as_strided((5, 2, 2), (1 << 14, 2, 1), 1 << 13)
    quantize_into(weights.cuda(), codes, scales)
    for one, other in zip((codes, scales), quantize(weights), strict=True):
        assert_same_bytes(one, other)
    written = 130 * 200 + 16
    assert int(room.eq(0xAB).sum()) >= 5 * ((1 << 16) - written)


def test_a_stack_of_more_numbers_than_32_bits_count_reaches_its_end() -> None:
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of free GPU memory")
    stack = torch.zeros(160, 7168, 2048, dtype=torch.bfloat16, device="cuda")
    stack[-1] = finite((7168, 2048), (-3, 3), torch.bfloat16).cuda()
    codes, scale = quantize(stack)
    want_codes, want_scale = quantize(stack[-1].cpu())
    assert_same_bytes(codes[-1], want_codes)
    assert_same_bytes(scale[-1], want_scale)
    assert codes[:-1].view(torch.uint8).count_nonzero() == 0
    assert_same_bytes(dequantize(codes, scale)[-1], dequantize(want_codes, want_scale))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("value", "shown"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
def test_a_weight_that_is_not_finite_is_named_with_its_place(dtype: torch.dtype, value: float, shown: str) -> None:
    weight = torch.ones(2, 300, 200, dtype=dtype, device="cuda")
    weight[1, 299, 130] = value
    with pytest.raises(CheckpointError, match=re.escape(f"up_proj: {shown} at [1, 299, 130]")):
        quantize(weight, name="up_proj")


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_a_code_that_is_nan_is_named_with_its_place(code: int) -> None:
    codes = torch.full((300, 200), 0x7E, dtype=torch.uint8, device="cuda")
    codes[299, 130] = code
    scale = torch.ones(3, 2, device="cuda")
    with pytest.raises(CheckpointError, match=re.escape("q_proj: NaN at [555, 130]")):
        Dequantizer()(codes.view(torch.float8_e4m3fn), scale, name="q_proj", first_row=256)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1e-5, 1e36, 0.0])
def test_a_scale_that_no_weight_has_is_named_with_its_block(wrong: float) -> None:
    codes, scale = quantize(torch.ones(300, 200, device="cuda"))
    scale[2, 1] = wrong
    with pytest.raises(CheckpointError, match=re.escape(f"q_proj: scale {wrong:g} of block [2, 1]")):
        dequantize(codes, scale, name="q_proj")


def finite(shape: tuple[int, ...], exponents: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Numbers of both signs, evenly spread over the exponents; one in ten is zero."""
    generator = torch.Generator().manual_seed(3)
    low, high = exponents
    magnitudes = torch.exp2(torch.rand(shape, generator=generator) * (high - low) + low)
    kept = torch.rand(shape, generator=generator) >= 0.1
    signs = torch.randint(0, 2, shape, generator=generator) * 2 - 1
    return (magnitudes * kept * signs).to(dtype)


def assert_quantized_alike(weight: Tensor) -> None:
    codes, scale = quantize(weight.cuda())
    want_codes, want_scale = quantize(weight)
    assert_same_bytes(scale, want_scale)
    assert_same_bytes(codes, want_codes)


def assert_same_bytes(got: Tensor, want: Tensor) -> None:
    assert got.is_cuda
    differ = got.cpu().contiguous().view(torch.uint8) != want.contiguous().view(torch.uint8)
    assert int(differ.sum()) == 0, f"{int(differ.sum())} of {differ.numel()} bytes differ"
