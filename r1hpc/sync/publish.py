"""Giving engines the trainers' weights: the driver's part, which moves no weight itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from r1hpc.sync.attempt import Attempt
from r1hpc.sync.endpoint import Couriers, EngineEndpoint
from r1hpc.sync.outline import SyncTimeoutError
from r1hpc.sync.report import SyncReport

__all__ = ["Couriers", "EngineEndpoint", "SyncReport", "publish"]

logger = logging.getLogger(__name__)

ATTEMPTS = 2
"""At most, each with its deadline."""


async def publish(
    couriers: Couriers,
    engines: Sequence[EngineEndpoint],
    version: int,
    *,
    timeout_s: float,
    full_check: bool = False,
) -> SyncReport:
    """Give these engines the weights of the trainers' host copy and stamp them with `version`.

    The engines are idle and have memory for weights. One that fails does not stop the others; if it still answers it is
    tried once more; past the deadline all have failed. What the trainers raise is raised: no engine has a version then.
    timeout_s: for one attempt; an engine has a part of it for each payload, so that one that hangs leaves time for the
    others.
    """
    began = time.monotonic()
    first, in_time = await _attempt(couriers, engines, version, timeout_s, full_check)
    report, again = first, list[EngineEndpoint]()
    if in_time:  # else nobody knows which of them it was that hung
        failed = [engine for engine in engines if engine.name in first.failed]
        healthy = await asyncio.gather(*(engine.control.is_healthy() for engine in failed))
        again = [engine for engine, is_healthy in zip(failed, healthy, strict=True) if is_healthy]
    if again:
        for engine in again:
            logger.warning("%s: sync failed and is tried again: %s", engine.name, first.failed[engine.name])
        second, _ = await _attempt(couriers, again, version, timeout_s, full_check)
        report = first.retried_by(second)
    for name, reason in report.failed.items():
        logger.error("%s: has no weights and has to be started again: %s", name, reason)
    return replace(report, seconds={**report.seconds, "total": time.monotonic() - began})


async def _attempt(
    couriers: Couriers, engines: Sequence[EngineEndpoint], version: int, timeout_s: float, full_check: bool
) -> tuple[SyncReport, bool]:
    """What came of it, and whether that was within its time."""
    try:
        return await Attempt(couriers, engines, version, timeout_s, full_check).run(), True
    except SyncTimeoutError as error:
        return SyncReport(version, (), {engine.name: str(error) for engine in engines}), False
