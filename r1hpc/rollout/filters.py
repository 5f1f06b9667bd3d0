"""Which groups are worth training on: dynamic sampling, arXiv:2503.14476 section 3.2.

A filter is a function `module.name(config, samples)`: the rollout section of the configuration and the samples of one
group, rewarded. It returns whether to keep the group, or a mapping {keep, reason, keep_when_insufficient}: `reason`
names the counter of a rejected group, and `keep_when_insufficient` keeps it where dropping it would force another wave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy

from r1hpc.config.training import RolloutConfig
from r1hpc.rollout.group import SamplerError
from r1hpc.types import Sample

NONZERO_STD = "r1hpc.rollout.filters.check_reward_nonzero_std"
SMALLEST_STD = 1e-6
"""Identical rewards that float64 cannot hold exactly have a std of about 1e-17, not 0."""

_KEYS = {"keep", "reason", "keep_when_insufficient"}


@dataclass(frozen=True)
class Verdict:
    """What a filter said of a group."""

    keep: bool
    reason: str | None = None
    """Of a rejection; null counts as `filter`."""
    keep_when_insufficient: bool = False
    """Keep it after all where dropping it would force another wave."""


FilterFunction = Callable[[RolloutConfig, Sequence[Sample]], "bool | Mapping[str, Any] | Verdict"]


def check_reward_nonzero_std(config: RolloutConfig, samples: Sequence[Sample]) -> Verdict:
    """Keep a group whose rewards differ: unbiased std over float64 above 1e-6. Others give no gradient.

    The reason has the common reward: zero_std_0.0 was too hard, zero_std_1.0 too easy.
    """
    rewards = numpy.asarray([sample.reward for sample in samples], dtype=numpy.float64)
    if numpy.std(rewards, ddof=1) > SMALLEST_STD:
        return Verdict(True)
    return Verdict(False, f"zero_std_{round(float(rewards[0]), 1)}")


class GroupFilter:
    """A filter function, checked: what it returns, and what it raises, become a Verdict or a SamplerError."""

    def __init__(self, config: RolloutConfig, function: FilterFunction, path: str) -> None:
        self._config = config
        self._function = function
        self._path = path

    @classmethod
    def of(cls, config: RolloutConfig) -> GroupFilter | None:
        """The filter that `rollout.dynamic_sampling_filter_path` names; None where every group is kept.

        Raises SamplerError where the path names no function, or the function could keep nothing.
        """
        path = config.dynamic_sampling_filter_path
        if path is None:
            return None
        if path == NONZERO_STD and config.n_samples_per_prompt < 2:
            raise SamplerError(
                f"rollout.dynamic_sampling_filter_path: {path} takes the std of a group's rewards, but"
                " rollout.n_samples_per_prompt is 1, and one reward has none: every group would be rejected; sample at"
                " least 2, or set no filter"
            )
        return cls(config, _import_function(path), path)

    def __call__(self, samples: Sequence[Sample]) -> Verdict:
        """What the function says of this group."""
        try:
            said = self._function(self._config, samples)
        except Exception as error:
            raise SamplerError(
                f"filter {self._path} raised {type(error).__name__}: {error}; {_describe(samples)}"
            ) from error
        return self._verdict(said, samples)

    def _verdict(self, said: object, samples: Sequence[Sample]) -> Verdict:
        if isinstance(said, Verdict):
            return said
        if isinstance(said, (bool, numpy.bool_)):
            return Verdict(bool(said))
        if isinstance(said, Mapping) and isinstance(said.get("keep"), (bool, numpy.bool_)) and set(said) <= _KEYS:
            reason = said.get("reason")
            return Verdict(
                bool(said["keep"]),
                None if reason is None else str(reason),
                bool(said.get("keep_when_insufficient", False)),
            )
        raise SamplerError(
            f"filter {self._path} returned {said!r}; it must return a bool, or a mapping with `keep` (a bool) and, if"
            f" wanted, `reason` and `keep_when_insufficient`; {_describe(samples)}"
        )


def _import_function(path: str) -> FilterFunction:
    module_name, _, name = path.rpartition(".")
    try:
        function = vars(import_module(module_name)).get(name)
    except Exception as error:
        raise SamplerError(
            f"rollout.dynamic_sampling_filter_path: {path}: {module_name} does not import:"
            f" {type(error).__name__}: {error}"
        ) from error
    if not callable(function):
        what = "has no such name" if function is None else f"has a {type(function).__name__} there"
        raise SamplerError(
            f"rollout.dynamic_sampling_filter_path: {path}: {module_name} {what}; it must be a function of (config,"
            " samples)"
        )
    return function  # type: ignore[no-any-return]


def _describe(samples: Sequence[Sample]) -> str:
    """Which group, and its rewards, most frequent first."""
    counts = Counter(sample.reward for sample in samples).most_common(4)
    rewards = ", ".join(f"{reward:g} x{times}" for reward, times in counts)
    return f"group {samples[0].group_index}, rewards {rewards}"
