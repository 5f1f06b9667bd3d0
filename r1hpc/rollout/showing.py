"""Tells the progress callback how far a rollout is, every second or so, while it runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from r1hpc.rollout.oversampling import OverSampling
from r1hpc.rollout.progress import ProgressCallback, RolloutProgress

logger = logging.getLogger(__name__)


@asynccontextmanager
async def showing(loop: OverSampling, callback: ProgressCallback | None) -> AsyncIterator[None]:
    """Call `callback` now and then until the block ends, and once more then."""
    if callback is None:
        yield
        return
    began = time.monotonic()
    ticking = asyncio.create_task(_tick(loop, callback, began))
    try:
        yield
    finally:
        # It ends by itself only when the callback has failed.
        if not ticking.done():
            ticking.cancel()
            _tell(callback, snapshot(loop, time.monotonic() - began))


def snapshot(loop: OverSampling, seconds: float) -> RolloutProgress:
    """How far the rollout is now."""
    started = [(at, attempt.index) for attempt in loop.running.values() for at in attempt.started.values()]
    oldest, group = min(started, default=(0.0, None))
    return RolloutProgress(
        rollout_id=loop.floor.rollout_id,
        target=loop.target,
        kept=len(loop.kept),
        rejected=loop.num_rejected,
        failed=len(loop.failed),
        running=len(loop.running),
        waves=loop.waves,
        running_samples=len(started),
        generated_tokens=loop.generated_tokens,
        longest_s=0.0 if group is None else asyncio.get_running_loop().time() - oldest,
        longest_group=group,
        seconds=seconds,
    )


async def _tick(loop: OverSampling, callback: ProgressCallback, began: float) -> None:
    while True:
        await asyncio.sleep(loop.limits.progress_every_s)
        if not _tell(callback, snapshot(loop, time.monotonic() - began)):
            return


def _tell(callback: ProgressCallback, progress: RolloutProgress) -> bool:
    """Whether that went well: showing how far a rollout is must not end it."""
    try:
        callback(progress)
    except Exception:
        logger.exception("the progress callback failed; it is not called again in this rollout")
        return False
    return True
