"""Reward functions of the user, named by import path.

One response at a time:

    def reward(response: str, label: str | None, metadata: Mapping[str, Any]) -> float

With `group_rm`, all responses to one prompt at once:

    def reward(responses: list[str], label: str | None, metadata: Mapping[str, Any]) -> list[float]

Either may be `async def`. It runs in a process of its own that is killed at the time limit and may be replaced between
any two calls: it must keep no state. A module must start no threads when imported, for the processes are forked from
one that has imported it.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from r1hpc.rewards.request import RewardError

CustomReward = Callable[..., Any]


def load_custom(path: str) -> CustomReward:
    """The function at `package.module.function`; raises RewardError saying which part is missing."""
    module_name, _, name = path.rpartition(".")
    if not module_name:
        raise RewardError(f"custom_rm_path: {path!r} must be package.module.function")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise RewardError(
            f"custom_rm_path {path}: importing {module_name} failed with {type(error).__name__}: {error}; "
            "it must be importable from the directory that the run starts in, or from PYTHONPATH"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        there = ", ".join(key for key, value in vars(module).items() if inspect.isfunction(value)) or "none"
        problem = "has no" if function is None else f"has a {type(function).__name__}, not a function, as its"
        raise RewardError(f"custom_rm_path {path}: {module_name} {problem} {name}; functions there: {there}")
    return function  # type: ignore[no-any-return]


def call_custom(function: CustomReward, arguments: Sequence[Any], count: int | None) -> list[float]:
    """The rewards that it returns; count: of the responses of a group, None for a single response.

    Raises TypeError or ValueError if it returns something else than one finite number a response.
    """
    result = function(*arguments)
    if inspect.isawaitable(result):
        result = asyncio.run(_finish(result))
    if count is None:
        return [_number(result)]
    values = [_number(value) for value in result]
    if len(values) != count:
        raise ValueError(f"returned {len(values)} rewards for a group of {count} responses")
    return values


async def _finish(awaitable: Any) -> Any:
    return await awaitable


def _number(value: Any) -> float:
    if isinstance(value, str) or value is None:
        raise TypeError(f"returned {value!r}, which is no number")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"returned {number}, which is not finite")
    return number
