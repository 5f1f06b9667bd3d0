"""Filters keep what they should and say why not; what is no filter is refused with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1hpc.config.training import RolloutConfig
from r1hpc.rollout.filters import GroupFilter, Verdict, check_reward_nonzero_std
from r1hpc.rollout.group import SamplerError
from r1hpc.types import Sample
from tests.rollout.scripted import rollout_config

CONFIG = rollout_config()


def group(*rewards: float) -> list[Sample]:
    tokens = numpy.asarray([1, 2], dtype=numpy.int32)
    return [Sample(index, 7, tokens, 1, reward) for index, reward in enumerate(rewards)]


@pytest.mark.parametrize(
    ("rewards", "verdict"),
    [
        ((0, 1), Verdict(True)),
        ((1, 1, 1, 0), Verdict(True)),
        ((0, 0), Verdict(False, "zero_std_0.0")),
        ((1, 1, 1), Verdict(False, "zero_std_1.0")),
        # 0.1 is no float: the std of eight of them is 1.5e-17, which `> 0` would let through.
        ((0.1,) * 8, Verdict(False, "zero_std_0.1")),
        ((-1, -1), Verdict(False, "zero_std_-1.0")),
        # Unbiased: [0, d] has the std d / sqrt(2); the biased one is d / 2.
        ((0, 1.3e-6), Verdict(False, "zero_std_0.0")),
        ((0, 1.5e-6), Verdict(True)),
    ],
)
def test_groups_of_equal_rewards_are_rejected(rewards: tuple[float, ...], verdict: Verdict) -> None:
    assert check_reward_nonzero_std(CONFIG, group(*rewards)) == verdict


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_nonzero_std_is_that_of_the_textbook(rewards: list[float]) -> None:
    mean = sum(rewards) / len(rewards)
    std = (sum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - 1)) ** 0.5
    if abs(std - 1e-6) > 1e-9:
        assert check_reward_nonzero_std(CONFIG, group(*rewards)).keep == (std > 1e-6)


def long_ones(config: RolloutConfig, samples: Sequence[Sample]) -> Any:
    return {"keep": False, "reason": f"len {config.n_samples_per_prompt}", "keep_when_insufficient": True}


def test_a_custom_filter_is_found_by_its_import_path() -> None:
    config = rollout_config(dynamic_sampling_filter_path="json.dumps")
    assert GroupFilter.of(config) is not None
    found = GroupFilter(config, long_ones, "here.long_ones")
    assert found(group(0, 1)) == Verdict(False, "len 2", True)


def test_no_filter_is_none() -> None:
    assert GroupFilter.of(rollout_config(dynamic_sampling_filter_path=None)) is None


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no_such_package.filters.mine", "no_such_package.filters does not import: ModuleNotFoundError"),
        ("r1hpc.rollout.filters.check_reward", "r1hpc.rollout.filters has no such name"),
        ("r1hpc.rollout.filters.SMALLEST_STD", "r1hpc.rollout.filters has a float there"),
    ],
)
def test_a_path_without_a_function_is_refused(path: str, said: str) -> None:
    with pytest.raises(SamplerError, match=said):
        GroupFilter.of(rollout_config(dynamic_sampling_filter_path=path))


def test_the_std_of_single_samples_is_refused() -> None:
    with pytest.raises(SamplerError, match="one reward has none"):
        GroupFilter.of(rollout_config(n_samples_per_prompt=1))


@pytest.mark.parametrize(
    ("returned", "verdict"),
    [
        (True, Verdict(True)),
        (False, Verdict(False)),
        (numpy.bool_(True), Verdict(True)),
        ({"keep": True}, Verdict(True)),
        ({"keep": False, "reason": "short"}, Verdict(False, "short")),
        (Verdict(False, "x"), Verdict(False, "x")),
    ],
)
def test_what_a_filter_may_return(returned: Any, verdict: Verdict) -> None:
    assert GroupFilter(CONFIG, lambda config, samples: returned, "a.b")(group(0, 1)) == verdict


@pytest.mark.parametrize("returned", [None, 1, "yes", {}, {"keep": "yes"}, {"keep": True, "why": "x"}])
def test_anything_else_is_refused(returned: Any) -> None:
    with pytest.raises(
        SamplerError, match=r"filter a.b returned .* it must return a bool, .* group 7, rewards 0 x2, 1 x1"
    ):
        GroupFilter(CONFIG, lambda config, samples: returned, "a.b")(group(0, 0, 1))
