"""Reward functions as a user may write them, good and bad."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy

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


def fork(response: str, label: str | None, metadata: Mapping[str, Any]) -> Any:
    """Start a process that would outlive the call, as the response says."""
    if response == "return twice":
        return float(os.fork() == 0)
    child = subprocess.Popen(["sleep", "600"], start_new_session=False)
    Path(metadata["pid_file"]).write_text(str(child.pid), encoding="ascii")
    if response == "wait":
        child.wait()
    return 1.0


def kill_parent(response: str, label: str | None, metadata: Mapping[str, Any]) -> float:
    if response == "kill":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(600)
    return 1.0


def odd_number(response: str, label: str | None, metadata: Mapping[str, Any]) -> Any:
    """The reward in an unusual type."""
    print("a function may print")
    if response == "cancelled":
        raise asyncio.CancelledError
    if response == "interrupted":
        raise KeyboardInterrupt
    return {"numpy": numpy.float32(0.5), "bool": True, "numpy bool": numpy.True_}[response]


def slow_group(responses: list[str], label: str | None, metadata: Mapping[str, Any]) -> Any:
    time.sleep(0.3)
    return numpy.arange(len(responses), dtype=numpy.float32)
