"""The order of the prompts: a pure function of (seed, epoch)."""

from __future__ import annotations

import numpy
from numpy.typing import NDArray


def epoch_order(num_prompts: int, *, seed: int, epoch: int, shuffle: bool) -> NDArray[numpy.int64]:
    """[num_prompts] places in the original order, in the order of this epoch; without shuffle they are the same.

    The keys of a sort are drawn rather than a permutation: numpy promises the numbers of PCG64 and SeedSequence for
    every version (NEP 19), not those of Generator, and a run may outlive its numpy. Equal keys keep their order.
    Seed and epoch enter apart: with their sum, as slime has it, seed 42 would repeat seed 41 one epoch later.
    """
    if not shuffle:
        return numpy.arange(num_prompts, dtype=numpy.int64)
    keys = numpy.random.PCG64(numpy.random.SeedSequence([seed, epoch])).random_raw(num_prompts)
    return numpy.argsort(keys, kind="stable")
