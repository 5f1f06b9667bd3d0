"""One engine: all its processes on all its hosts, and what is known of its memory and weights."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError

from r1hpc.actors.collective_call import first_line
from r1hpc.errors import R1hpcError
from r1hpc.rollout import keeper
from r1hpc.rollout.engine_control import ALL_TAGS, EngineControl, MemoryTag
from r1hpc.rollout.protocol import BOOT_VERSION
from r1hpc.rollout.server import EngineExit, EngineStartError

logger = logging.getLogger(__name__)

T = TypeVar("T")

_STOP_S = 60.0
"""For a process to be stopped by its owner, who itself is patient for half as long; then the owner is ended."""
_PORTS_S = keeper.REAP_S
"""What is left of a process whose owner was killed holds its ports so long at most."""
_PAUSE_S = 2.0
_OWNER_S = 60.0
"""For owners to come up."""


class EngineError(R1hpcError):
    """An engine that cannot be started, or does not do what it was asked; says why."""


class PlacedEngine:
    """One engine. Its calls are made one after another: the group and its recovery take care of that."""

    def __init__(
        self, name: str, ranks: Sequence[int], control: EngineControl, owners: Callable[[], Sequence[ActorHandle]]
    ) -> None:
        """ranks: slots of its GPUs, in the order of its tensor-parallel ranks. owners: makes an actor a process."""
        self.name = name
        self.ranks = tuple(ranks)
        self.control = control
        self.is_up = False
        """Healthy when it was last looked at; what is not up has no process, or has one that must be ended."""
        self.resident: frozenset[MemoryTag] = frozenset()
        """What it has memory for."""
        self.weight_version = BOOT_VERSION
        """Of the weights that it was given; released weights are lost."""
        self._make_owners = owners
        self._owners: list[ActorHandle] = []
        self._lost_owner = False
        """An owner was killed: its keeper ends what it had started, which takes a moment."""

    async def start(self, deadline_s: float) -> None:
        """Start all processes and wait until the engine answers. Raises EngineError, having ended them again."""
        assert not self._owners, f"{self.name} was started already"
        try:
            # Its owners give up first: they have read its log.
            async with asyncio.timeout(deadline_s + _OWNER_S):
                self._owners = list(self._make_owners())
                await self._start_processes()
                healthy = [owner.wait_until_healthy.remote(deadline_s) for owner in self._owners]
                await asyncio.gather(*map(_told, healthy))
        except BaseException as error:
            await asyncio.shield(self.stop())
            if isinstance(error, TimeoutError):
                raise EngineError(f"{self.name} is not up after {deadline_s:.0f} s") from error
            raise
        self._lost_owner = False
        self.resident, self.weight_version, self.is_up = frozenset(ALL_TAGS), BOOT_VERSION, True

    async def stop(self) -> None:
        """End all processes, whatever state they are in; returns when they are gone. Raises nothing."""
        self.is_up, self.resident, self.weight_version = False, frozenset(), BOOT_VERSION
        owners, self._owners = self._owners, []
        await asyncio.gather(*(self._end(owner) for owner in owners))

    async def ended(self) -> str | None:
        """How a process of the engine ended, in words; None while all run."""
        try:
            ends = await asyncio.gather(*(_told(owner.ended.remote()) for owner in self._owners))
        except EngineError as error:
            return str(error)
        found: list[EngineExit] = [end for end in ends if end is not None]
        return str(found[0]) if found else None

    async def release(self) -> None:
        """Give all memory back; the engine is idle. Its weights are lost."""
        if self.resident:
            await self.control.flush_cache()
            self.weight_version = BOOT_VERSION
            await self.control.release_memory([tag for tag in ALL_TAGS if tag in self.resident])
            self.resident = frozenset()

    async def resume(self, tags: Sequence[MemoryTag]) -> None:
        """Take memory again, where it has none."""
        if missing := [tag for tag in tags if tag not in self.resident]:
            await self.control.resume_memory(missing)
            self.resident |= frozenset(missing)

    async def _start_processes(self) -> None:
        """What is left of owners that were killed may still have the ports."""
        end = asyncio.get_running_loop().time() + _PORTS_S
        while True:
            try:
                await asyncio.gather(*(_told(owner.start.remote()) for owner in self._owners))
                return
            except EngineStartError:
                if asyncio.get_running_loop().time() > end or not self._lost_owner:
                    raise
                await asyncio.gather(*(_quietly(owner.stop.remote()) for owner in self._owners))
                await asyncio.sleep(_PAUSE_S)

    async def _end(self, owner: ActorHandle) -> None:
        try:
            async with asyncio.timeout(_STOP_S):
                await owner.stop.remote()
        except (RayError, TimeoutError) as error:
            self._lost_owner = True
            logger.warning("%s: its owner did not stop it, and is ended: %s", self.name, first_line(error))
        finally:
            ray.kill(owner)  # its keeper ends what is left


async def _told(call: Awaitable[T]) -> T:
    """What an owner answers. Raises what it raised, EngineError where it is gone."""
    try:
        return await call
    except RayTaskError as error:
        raise error.cause from None
    except RayActorError as error:
        raise EngineError(f"the process that owns it is gone: {first_line(error)}") from error
    except RayError as error:
        raise EngineError(f"the process that owns it does not answer: {first_line(error)}") from error


async def _quietly(call: Awaitable[Any]) -> None:
    with suppress(RayError):
        await call
