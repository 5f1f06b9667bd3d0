"""One refinement gives the quotients that the GPU's quantizer needs: all mantissas of bfloat16, in exact arithmetic.

The kernel runs in tests/gpu/test_fp8_gpu.py; what is proven here is its claim (fp8_triton._STEPS).
"""

from __future__ import annotations

from fractions import Fraction

import numpy
from numpy.typing import NDArray

from r1hpc.checkpoint.fp8_format import AMAX_FLOOR, E4M3_MAX

Float32 = NDArray[numpy.float32]

MANTISSAS = (1 + numpy.arange(128) / 128).astype(numpy.float32)
"""Of bfloat16."""
BINADES = 26
"""That a weight may lie below the largest of its block and have a code that is not 0, and some more."""


def test_one_refinement_rounds_the_quotient_of_a_bfloat16_and_a_blocks_scale_correctly() -> None:
    values = numpy.concatenate([numpy.ldexp(MANTISSAS, -binade) for binade in range(BINADES)])[None, :]
    largest = MANTISSAS[:, None]
    assert_refined(values, (largest / numpy.float32(E4M3_MAX)).astype(numpy.float32))


def test_so_it_does_where_a_block_has_next_to_nothing() -> None:
    floor = numpy.float32(AMAX_FLOOR)
    top = int(numpy.floor(numpy.log2(floor)))
    values = numpy.concatenate([numpy.ldexp(MANTISSAS, top - binade) for binade in range(BINADES)])[None, :]
    assert_refined(values, numpy.array([[floor / numpy.float32(E4M3_MAX)]], dtype=numpy.float32))


def assert_refined(values: Float32, scales: Float32) -> None:
    """For each value [1, V] and scale [S, 1], of which a value above what the scale is for may be any."""
    reciprocals = (numpy.float32(1) / scales).astype(numpy.float32)
    quotients = (values * reciprocals).astype(numpy.float32)
    remainders = fused(quotients, scales, -values)
    refined = fused(remainders, -reciprocals, quotients)
    expected = (values / scales).astype(numpy.float32)
    assert (quotients != expected).any(), "then no refinement would be needed"
    assert (refined == expected).all()


def fused(factor: Float32, other: Float32, summand: Float32) -> Float32:
    """factor * other + summand, rounded once."""
    factor, other, summand = numpy.broadcast_arrays(factor, other, summand)
    # Exact but for the last rounding to 53 bits.
    doubles = factor.astype(numpy.float64) * other + summand
    rounded: Float32 = doubles.astype(numpy.float32)
    # Where that lies in the middle of two floats, or beside it, rounding twice could differ from rounding once.
    ulps = numpy.spacing(numpy.abs(rounded)).astype(numpy.float64)
    doubtful = numpy.abs(numpy.abs(doubles - rounded) / ulps - 0.5) < 2**-20
    for place in zip(*numpy.nonzero(doubtful), strict=True):
        exact = Fraction(float(factor[place])) * Fraction(float(other[place])) + Fraction(float(summand[place]))
        near = (numpy.nextafter(rounded[place], numpy.float32(side)) for side in (-numpy.inf, numpy.inf))
        rounded[place] = min([rounded[place], *near], key=lambda float32: abs(Fraction(float(float32)) - exact))
    return rounded
