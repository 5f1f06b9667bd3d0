"""Estimated operations of a sequence."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1hpc.config import load_config
from r1hpc.plan.batches import make_batches
from r1hpc.plan.iteration import MEAN_LENGTH_SHARE, update_flops
from r1hpc.plan.model_shape import read_model_shape
from r1hpc.train.flops import SequenceCost, sequence_cost

ROOT = Path(__file__).parents[2]
R1 = read_model_shape(ROOT / "configs" / "models" / "deepseek-r1" / "config.json")


def test_operations_by_hand() -> None:
    assert SequenceCost(per_token=10, per_pair=3)(7) == 10 * 7 + 3 * 7 * 7


def test_r1_from_the_sizes_of_its_matrices() -> None:
    attention = 7168 * 1536 + 1536 * 128 * 192 + 7168 * 576 + 512 * 128 * 256 + 128 * 128 * 7168
    layers = 61 * attention + 3 * 3 * 7168 * 18432 + 58 * (9 * 3 * 7168 * 2048 + 256 * 7168)
    cost = sequence_cost(R1)
    # Norms are counted with the matrices, and are next to nothing.
    assert cost.per_token == pytest.approx(2 * (layers + 7168 * 129_280), rel=1e-4)
    # Each of 61 * 128 heads: scores of 192 and values of 128, two operations, on half of the square.
    assert cost.per_pair == 61 * 128 * (192 + 128) * 2 // 2
    # Attention is as dear as all matrices at about 30k tokens.
    assert cost.per_token / cost.per_pair == pytest.approx(29_400, rel=0.01)


def test_the_plan_counts_the_same() -> None:
    config = load_config(ROOT / "configs" / "r1.yaml").config
    batches = make_batches(config, 2, None)
    length = batches.longest_sample * MEAN_LENGTH_SHARE
    passes = 6  # forward, backward (two), recomputation, old and reference log-probs
    cost = sequence_cost(R1)
    one = cost.per_token * length + cost.per_pair * length**2
    assert update_flops(config, R1, batches) == pytest.approx(passes * batches.samples * one, rel=1e-12)
