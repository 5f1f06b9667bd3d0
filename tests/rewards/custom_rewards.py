"""Reward functions as a user may write them, good and bad."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

NOT_A_FUNCTION = 3


def by_length(response: str, label: str | None, metadata: Mapping[str, Any]) -> float:
    return float(len(response) + metadata.get("bonus", 0))


def rank_in_group(responses: list[str], label: str | None, metadata: Mapping[str, Any]) -> list[float]:
    return [sorted(responses).index(response) + 0.5 for response in responses]


async def later(response: str, label: str | None, metadata: Mapping[str, Any]) -> float:
    await asyncio.sleep(0.05)
    return 2.5


def misbehave(response: str, label: str | None, metadata: Mapping[str, Any]) -> Any:
    """Do what the response says."""
    if response == "hang":
        time.sleep(600)
    if response == "eat":
        return len(bytearray(8 * 2**30))
    if response == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if response == "raise":
        raise ValueError("no such answer")
    if response == "exit":
        sys.exit(3)
    return {"nan": math.nan, "none": None, "text": "1.0"}.get(response, 1.0)
