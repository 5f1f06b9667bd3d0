"""Advantages against numbers worked by hand, and against NumPy a group at a time."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from r1hpc.train.grpo import group_advantages


def advantages(rewards: list[float], groups: list[int], *, normalize: bool = True, by_std: bool = True) -> list[float]:
    """As lists."""
    found = group_advantages(torch.tensor(rewards), torch.tensor(groups), normalize=normalize, by_std=by_std)
    assert found.dtype == torch.float32
    return found.tolist()


def test_one_right_answer_of_four() -> None:
    """Mean 1/4; squares 9/16 + 3/16 = 3/4, over 3: std 1/2, plus 1e-6. (3/4) / 0.500001, (-1/4) / 0.500001."""
    assert advantages([1, 0, 0, 0], [5, 5, 5, 5]) == pytest.approx(
        [1.499997, -0.499999, -0.499999, -0.499999], abs=2e-7
    )


def test_without_std_rewards_are_only_centered() -> None:
    assert advantages([1, 0, 0, 0], [0] * 4, by_std=False) == [0.75, -0.25, -0.25, -0.25]


def test_without_normalization_rewards_are_the_advantages() -> None:
    assert advantages([3, 1, -2], [0, 0, 1], normalize=False) == [3, 1, -2]


def test_interleaved_groups_of_unequal_sizes_never_mix() -> None:
    """Group 9 has 0 and 4 (mean 2, std sqrt 8), group 2 has 1, 2, 3 (mean 2, std 1)."""
    found = advantages([0, 1, 2, 4, 3], [9, 2, 2, 9, 2])
    assert found == pytest.approx([-(0.5**0.5), -1, 0, 0.5**0.5, 1], abs=2e-6)


def test_a_group_of_one_has_no_baseline_but_itself_and_no_std() -> None:
    assert advantages([7, 0, 1], [1, 0, 0])[0] == 0.0
    assert advantages([7, 0, 1], [1, 0, 0], by_std=False)[0] == 0.0


def test_equal_rewards_that_float32_cannot_hold_exactly_give_zeros_up_to_rounding() -> None:
    assert advantages([0.1] * 7, [0] * 7) == pytest.approx([0.0] * 7, abs=1e-9)


@given(
    samples=st.lists(st.tuples(st.integers(-3, 3), st.floats(-100, 100, width=32)), min_size=1, max_size=30),
    by_std=st.booleans(),
)
def test_equals_numpy_a_group_at_a_time(samples: list[tuple[int, float]], by_std: bool) -> None:
    groups, rewards = numpy.array([g for g, _ in samples]), numpy.array([r for _, r in samples])
    expected = numpy.zeros(len(samples))
    for group in set(groups.tolist()):
        of_group = rewards[groups == group]
        scale = numpy.std(of_group, ddof=1) + 1e-6 if by_std and len(of_group) > 1 else 1.0
        expected[groups == group] = (of_group - of_group.mean()) / scale
    found = group_advantages(torch.from_numpy(rewards).float(), torch.from_numpy(groups), normalize=True, by_std=by_std)
    numpy.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-6)
