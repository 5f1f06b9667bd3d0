"""The two iterations: sampled, released, updated, taken again, sampled; what each came to is kept for the verdict."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

from r1hpc.canary.config import ITERATIONS
from r1hpc.canary.verdict import Iterated, of_sync
from r1hpc.errors import CanaryError
from r1hpc.loop import Loop
from r1hpc.metrics.build import loss_numbers
from r1hpc.rollout.dispatch import Dispatcher
from r1hpc.rollout.sampler import Rollout

_LOOK_S = 0.5

Begin = Callable[[str, int], None]
"""Told the step that begins, and its iteration."""


async def cycle(loop: Loop, begin: Begin) -> list[Iterated]:
    """Do the iterations with the parts of `loop`; nothing is committed. Raises what a part raises."""
    found = []
    for iteration in range(ITERATIONS):
        begin("publishing", iteration)
        async with loop.colocation.rollout_phase() as dispatcher:
            assert dispatcher is not None, "a canary has engines"
            if wrong := of_sync(loop.colocation.last_sync, iteration):
                raise CanaryError("\n".join(wrong))
            begin("sampling", iteration)
            before = _finished(dispatcher)
            rollout = await _sample(loop, dispatcher, iteration)
            served = {name: count - before.get(name, 0) for name, count in _finished(dispatcher).items()}
        begin("releasing", iteration)
        async with loop.colocation.train_phase() as trainers:
            begin("updating", iteration)
            updating = trainers.update(rollout.samples, iteration)
            update = await loop.interrupt.unless(updating, "while the canary was trained")
        loop.colocation.version = iteration + 1
        numbers = loss_numbers(update)
        found.append(
            Iterated(
                iteration,
                served,
                numbers.get("mismatch_abs"),
                numbers.get("mismatch_max"),
                max(step.grad_norm for step in update.steps),
            )
        )
    return found


async def _sample(loop: Loop, dispatcher: Dispatcher, iteration: int) -> Rollout:
    """A rollout, given up as soon as an engine goes down: the run would bring it back, and the cause be forgotten."""
    sampling = loop.rollouts.rollout(iteration, loop.colocation.version)
    work = asyncio.ensure_future(loop.interrupt.unless(sampling, "while the canary was sampled"))
    try:
        while not work.done():
            _require_all(dispatcher)
            await asyncio.wait({work}, timeout=_LOOK_S)
        return work.result()
    finally:
        work.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await work


def _require_all(dispatcher: Dispatcher) -> None:
    down = [f"{engine.name}: {engine.reason}" for engine in dispatcher.engines if engine.state == "down"]
    if down:
        raise CanaryError("\n".join(down))


def _finished(dispatcher: Dispatcher) -> dict[str, int]:
    return {engine.name: engine.finished for engine in dispatcher.engines}
