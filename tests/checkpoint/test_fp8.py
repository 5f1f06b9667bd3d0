"""Block fp8 on the CPU, against a reference in numpy that looks codes up in a list of the e4m3 values."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from r1hpc.checkpoint.fp8 import AMAX_FLOOR, BLOCK, E4M3_MAX, Dequantizer, dequantize, quantize, scale_shape
from r1hpc.errors import CheckpointError

# 0 to 448, by code: exponent 0 is subnormal (steps of 2^-9), the others have a bias of 7.
E4M3 = np.array([c * 2.0**-9 if c < 8 else (1 + c % 8 / 8) * 2.0 ** (c // 8 - 7) for c in range(127)])
BF16_MAX = 3.3895313892515355e38


def test_the_list_of_values_is_that_of_the_format() -> None:
    assert (E4M3[0], E4M3[1], E4M3[8], E4M3[0x38], E4M3[126]) == (0.0, 2.0**-9, 2.0**-6, 1.0, 448.0)
    assert (BLOCK, E4M3_MAX, AMAX_FLOOR) == (128, 448.0, 1e-10)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (448.0, 0x7E),
        (1.0, 0x38),
        (-1.0, 0xB8),
        (17.0, 0x58),  # between 16 and 18: to the even code, 16
        (19.0, 0x5A),  # between 18 and 20: to the even code, 20
        (2.0**-9, 0x01),
        (1.5 * 2.0**-9, 0x02),  # between subnormals
        (2.0**-10, 0x00),  # half of the smallest: to zero
        (1.01 * 2.0**-10, 0x01),
        (0.0, 0x00),
        (-0.0, 0x80),
    ],
)
def test_a_code_is_the_nearest_value_and_of_two_the_even_one(value: float, code: int) -> None:
    weight = torch.zeros(1, 2)
    weight[0] = torch.tensor([448.0, value])  # 448 makes the scale 1
    codes, scale = quantize(weight)
    assert scale.tolist() == [[1.0]]
    assert codes.view(torch.uint8)[0, 1] == code


def test_scales_are_one_a_block_and_of_partial_blocks_too() -> None:
    assert scale_shape((576, 7168)) == (5, 56)
    assert scale_shape((1, 129)) == (1, 2)
    weight = torch.ones(130, 257)
    weight[:128, 128:256] = -3.5  # the largest magnitude counts
    weight[128:, 256:] = 7.0
    codes, scale = quantize(weight)
    one = 1 / 448
    assert torch.equal(scale, torch.tensor([[one, 3.5 / 448, one], [one, one, 7 / 448]]))
    assert codes.float().abs().eq(448).all()


def test_a_block_of_zeros_is_zeros_with_the_floor_for_its_scale() -> None:
    codes, scale = quantize(torch.zeros(128, 256, dtype=torch.bfloat16))
    assert codes.view(torch.uint8).count_nonzero() == 0
    assert torch.equal(scale, torch.full((1, 2), 1e-10) / 448)
    assert dequantize(codes, scale).count_nonzero() == 0


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Any finite bit patterns of one dtype, magnitudes of a narrow or a wide range, in a shape of partial blocks."""
    rows, columns = draw(st.integers(1, 300)), draw(st.integers(1, 300))
    dtype = draw(st.sampled_from([torch.bfloat16, torch.float32]))
    exponents = draw(st.sampled_from([(-1, 1), (-30, 0), (-12, 12), (-126, 127), (-149, -100), (-45, -25)]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    magnitudes = 2.0 ** random.uniform(*exponents, (rows, columns))
    magnitudes[random.random((rows, columns)) < 0.1] = 0.0
    values = np.clip(magnitudes * random.choice([-1, 1], (rows, columns)), -BF16_MAX, BF16_MAX)
    return torch.from_numpy(values.astype(np.float32)).to(dtype)


@settings(max_examples=60, deadline=None)
@given(weights())
def test_quantize_equals_the_reference_bit_for_bit(weight: Tensor) -> None:
    codes, scale = quantize(weight)
    want_codes, want_scale = reference_codes(weight.float().numpy())
    np.testing.assert_array_equal(scale.numpy(), want_scale)
    np.testing.assert_array_equal(codes.view(torch.uint8).numpy(), want_codes)


@settings(max_examples=60, deadline=None)
@given(weights(), st.sampled_from([1e-38, 3e-42, 2e-13, 0.7, 300.0, 7e35]), st.integers(0, 2**32))
def test_dequantize_equals_the_reference_bit_for_bit(like: Tensor, magnitude: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    codes = torch.from_numpy(random.integers(0, 127, like.shape) | random.choice([0, 128], like.shape)).to(torch.uint8)
    scale = torch.from_numpy((random.uniform(0.5, 1, scale_shape(like.shape)) * magnitude).astype(np.float32))
    values = dequantize(codes.view(torch.float8_e4m3fn), scale)
    assert torch.equal(values.view(torch.int16), reference_values(codes, scale).view(torch.int16))


def test_every_code_times_any_scale_is_rounded_once() -> None:
    finite = [code for code in range(256) if code & 0x7F != 0x7F]
    codes = torch.tensor(finite, dtype=torch.uint8).repeat(128 * 64, 1)
    random = np.random.default_rng(0)
    scale = torch.from_numpy((2.0 ** random.uniform(-126, 119, (64, 2))).astype(np.float32))
    values = dequantize(codes.view(torch.float8_e4m3fn), scale)
    assert torch.equal(values.view(torch.int16), reference_values(codes, scale).view(torch.int16))


# Whole tiles of several row blocks, tiles that are cut in columns, and a last partial block of each.
@pytest.mark.parametrize("shape", [(128 * 18 + 5, 1000), (128 * 2 + 60, 8192 + 130), (1, 20000), (5000, 1)])
def test_shapes_of_several_tiles_equal_the_reference(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    codes, scale = quantize(weight)
    want_codes, want_scale = reference_codes(weight.float().numpy())
    np.testing.assert_array_equal(scale.numpy(), want_scale)
    np.testing.assert_array_equal(codes.view(torch.uint8).numpy(), want_codes)
    assert torch.equal(dequantize(codes, scale), reference_values(codes.view(torch.uint8), scale))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_strides_change_nothing(dtype: torch.dtype) -> None:
    whole = torch.randn(400, 700, generator=torch.Generator().manual_seed(2)).to(dtype)
    for view in (whole.T, whole[1::2, 3::5], whole[:, 40:300], whole[:1].expand(200, -1)):
        codes, scale = quantize(view)
        want_codes, want_scale = quantize(view.contiguous())
        assert same_bytes(codes, want_codes)
        assert torch.equal(scale, want_scale)
        strided_codes, strided_scale, strided_out = (
            torch.stack([tensor, tensor], 2)[:, :, 1] for tensor in (codes, scale, torch.zeros(view.shape).bfloat16())
        )
        values = dequantize(strided_codes, strided_scale, out=strided_out)
        assert values is strided_out
        assert torch.equal(strided_out, dequantize(codes, scale))


def test_a_stack_of_matrices_is_each_by_itself() -> None:
    stack = torch.randn(3, 130, 200, generator=torch.Generator().manual_seed(3)).bfloat16()
    codes, scale = quantize(stack)
    assert scale.shape == (3, 2, 2)
    values = dequantize(codes, scale)
    for index in range(3):
        want_codes, want_scale = quantize(stack[index])
        assert same_bytes(codes[index], want_codes)
        assert torch.equal(scale[index], want_scale)
        assert torch.equal(values[index], dequantize(want_codes, want_scale))


def test_bands_of_rows_through_one_scratch_equal_the_whole() -> None:
    weight = torch.randn(700, 300, generator=torch.Generator().manual_seed(4)).bfloat16()
    codes, scale = quantize(weight)
    whole, dequantizer = dequantize(codes, scale), Dequantizer()
    buffer = torch.empty(384, 300, dtype=torch.bfloat16)
    for first, last in ((0, 128), (128, 512), (512, 700)):
        band, blocks = slice(first, last), slice(first // 128, -(-last // 128))
        out = buffer[: last - first]
        dequantizer(codes[band], scale[blocks], out=out, first_row=first)
        assert torch.equal(out, whole[band])
        band_codes, band_scale = quantize(weight[band])
        assert same_bytes(band_codes, codes[band])
        assert torch.equal(band_scale, scale[blocks])


@pytest.mark.parametrize("magnitude", [1e-20, 3e-11, 1e-9, 0.02, 1e30])
def test_going_to_bf16_and_back_gives_the_same_bytes(magnitude: float) -> None:
    generator = torch.Generator().manual_seed(5)
    tails = torch.exp(2 * torch.randn(512, 512, generator=generator))
    weight = torch.randn(512, 512, generator=generator) * tails * magnitude
    codes, scale = quantize(weight)
    again, scale_again = quantize(dequantize(codes, scale))
    assert same_bytes(again, codes)
    # The largest weight was rounded to 8 bits on the way.
    assert ((scale_again - scale).abs() <= scale * 2.0**-8).all()
    from_bf16, scale_from_bf16 = quantize(weight.bfloat16())
    again, scale_again = quantize(dequantize(from_bf16, scale_from_bf16))
    assert same_bytes(again, from_bf16)
    assert torch.equal(scale_again, scale_from_bf16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("value", "shown"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
def test_a_weight_that_is_not_finite_is_named_with_its_place(dtype: torch.dtype, value: float, shown: str) -> None:
    weight = torch.ones(300, 200, dtype=dtype)
    weight[299, 130] = weight[299, 131] = value
    with pytest.raises(CheckpointError, match=re.escape(f"layers.3.up_proj: {shown} at [555, 130]")):
        quantize(weight, name="layers.3.up_proj", first_row=256)
    with pytest.raises(CheckpointError, match=re.escape(f"{shown} at [1, 299, 130]")):
        quantize(torch.stack([torch.ones_like(weight), weight]))


@pytest.mark.parametrize("code", [0x7F, 0xFF])
def test_a_code_that_is_nan_is_named_with_its_place(code: int) -> None:
    codes = torch.full((300, 200), 0x7E, dtype=torch.uint8)
    codes[299, 130] = code
    with pytest.raises(CheckpointError, match=re.escape("q_proj: NaN at [555, 130]")):
        Dequantizer()(codes.view(torch.float8_e4m3fn), torch.ones(3, 2), name="q_proj", first_row=256)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), -1e-5, 1e36])
def test_a_scale_that_no_weight_has_is_named_with_its_block(wrong: float) -> None:
    codes, scale = quantize(torch.ones(300, 200))
    scale[2, 1] = wrong
    with pytest.raises(
        CheckpointError, match=re.escape(f"q_proj: scale {wrong:g} of block [4, 1]; a scale is between")
    ):
        Dequantizer()(codes, scale, name="q_proj", first_row=256)


def test_the_largest_scale_is_the_one_that_takes_448_to_the_largest_bf16() -> None:
    codes, scale = quantize(torch.full((2, 2), BF16_MAX, dtype=torch.bfloat16))
    assert dequantize(codes, scale).eq(BF16_MAX).all()
    with pytest.raises(CheckpointError, match="beyond bf16"):
        dequantize(codes, scale * (1 + 2.0**-22))


def test_a_scale_of_zero_is_for_zeros_only() -> None:
    codes, scale = quantize(torch.ones(300, 200))
    scale[2, 1] = 0.0
    with pytest.raises(CheckpointError, match=re.escape("o_proj: scale 0 of block [2, 1], whose codes are not all 0")):
        dequantize(codes, scale, name="o_proj")
    codes.view(torch.uint8)[256:, 128:] = 0x80  # minus zero is zero
    assert dequantize(codes, scale)[256:, 128:].count_nonzero() == 0


def test_scales_of_another_shape_are_refused_with_the_rule() -> None:
    codes, scale = quantize(torch.ones(576, 300))
    rule = "scales [4, 3] do not fit weight [576, 300]: one a block of 128 x 128, so ceil(576/128) x ceil(300/128), "
    with pytest.raises(CheckpointError, match=re.escape(rule + "makes [5, 3]")):
        dequantize(codes, scale[:4])


def test_other_dtypes_and_shapes_are_refused() -> None:
    codes, scale = quantize(torch.ones(4, 4))
    with pytest.raises(CheckpointError, match="up: weight of float16; block fp8 takes bfloat16 or float32"):
        quantize(torch.ones(4, 4, dtype=torch.float16), name="up")
    with pytest.raises(CheckpointError, match="up: weight of bfloat16; block fp8 takes float8_e4m3fn"):
        dequantize(codes.bfloat16(), scale, name="up")
    with pytest.raises(CheckpointError, match="up: scales of bfloat16; block fp8 takes float32"):
        dequantize(codes, scale.bfloat16(), name="up")
    for shape in ((4,), (0, 4), (4, 0), (1, 1, 4, 4)):
        with pytest.raises(
            CheckpointError, match=re.escape(f"weight of shape {list(shape)}; block fp8 takes [M, N] or [E, M")
        ):
            quantize(torch.ones(shape))


def reference_codes(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Block by block: the quotient in float32, then the nearest of the list by its midpoints."""
    codes, scale = np.empty(weight.shape, np.uint8), np.empty(scale_shape(weight.shape), np.float32)
    for row, column in np.ndindex(*scale.shape):
        place = (slice(row * 128, row * 128 + 128), slice(column * 128, column * 128 + 128))
        amax = np.maximum(np.abs(weight[place]).max(), np.float32(1e-10))
        scale[row, column] = amax / np.float32(448)
        quotient = np.clip(weight[place] / scale[row, column], np.float32(-448), np.float32(448)).astype(np.float64)
        midpoints = (E4M3[1:] + E4M3[:-1]) / 2
        below, above = (np.searchsorted(midpoints, np.abs(quotient), side) for side in ("left", "right"))
        nearest = np.where(below % 2 == 0, below, above)
        codes[place] = nearest | np.where(np.signbit(weight[place]), 0x80, 0)
    return codes, scale


def reference_values(codes: Tensor, scale: Tensor) -> Tensor:
    """The float32 product by the list, rounded to bf16 by torch."""
    numbers = codes.numpy()
    values = np.where(numbers >= 0x80, -E4M3[numbers & 0x7F], E4M3[numbers & 0x7F]).astype(np.float32)
    rows, columns = numbers.shape
    factors = scale.numpy().repeat(128, 0)[:rows].repeat(128, 1)[:, :columns]
    return torch.from_numpy(values * factors).bfloat16()


def same_bytes(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
