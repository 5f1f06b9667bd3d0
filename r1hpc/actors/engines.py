"""All engines of a run, for the driver."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ray.util.placement_group import PlacementGroup

from r1hpc.actors.engine_site import EngineSite
from r1hpc.actors.placed_engine import EngineError, PlacedEngine
from r1hpc.cluster.launch import Launch
from r1hpc.cluster.ray import Slot
from r1hpc.config import Config
from r1hpc.errors import R1hpcError
from r1hpc.rollout.client import EngineClient
from r1hpc.rollout.protocol import BOOT_VERSION
from r1hpc.rollout.versions import Capabilities, installed_capabilities
from r1hpc.sync.publish import EngineEndpoint
from r1hpc.sync.routes import routed_ep_size

__all__ = ["EngineError", "EngineGroup"]

logger = logging.getLogger(__name__)

_LOOK_S = 2.0
"""Between two looks whether the processes run."""
_ORDER_S = 180.0
"""For an engine to release or resume memory."""

OnDown = Callable[[str, str], None]


class EngineGroup:
    """Engines are up, or down until `restart`. What fails for one is told, and leaves the others alone."""

    def __init__(self, site: EngineSite, known: Capabilities) -> None:
        """Nothing is started yet."""
        self._sglang = site.config.sglang
        self._secret = site.secret
        self._engines = {engine.name: engine for engine in site.engines()}
        self._known = known
        self._on_down: OnDown | None = None
        self._watch: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        config: Config,
        launch: Launch,
        group: PlacementGroup,
        slots: Sequence[Slot],
        logs: Path,
        deadline_s: float,
        secret: str | None = None,
    ) -> EngineGroup:
        """Start all engines together and wait until all are healthy; they have memory, and the weights they boot with.

        secret: the key that their servers ask for (`cluster.launch.engine_key`); without one they start on loopback
        only. Raises EngineError naming every engine that did not come up, after ending the others.
        """
        began = time.monotonic()
        self = cls(EngineSite(config, launch, group, slots, logs, secret), installed_capabilities())
        engines = list(self._engines.values())
        try:
            failed = await self._each(engines, lambda engine: engine.start(deadline_s))
            if failed:
                raise EngineError("\n".join(failed.values()))
        except BaseException:
            await asyncio.shield(self.close())
            raise
        self._watch = asyncio.get_running_loop().create_task(self._look_forever())
        logger.info("%d engines are up, %.0f s", len(engines), time.monotonic() - began)
        return self

    @property
    def names(self) -> list[str]:
        """Of all engines."""
        return list(self._engines)

    @property
    def up(self) -> list[str]:
        """Engines that were well when they were last looked at."""
        return [engine.name for engine in self._up]

    def endpoint(self, name: str) -> EngineEndpoint:
        """Where an engine takes weights."""
        engine = self._engines[name]
        return EngineEndpoint(name, engine.control, self._known, engine.ranks, routed_ep_size(self._sglang))

    @property
    def hold_memory(self) -> bool:
        """Whether any engine has memory for anything."""
        return any(engine.resident for engine in self._engines.values())

    @property
    def endpoints(self) -> list[EngineEndpoint]:
        """Those of the engines that are up."""
        return [self.endpoint(name) for name in self.up]

    def client(self, name: str) -> EngineClient:
        """A new client of an engine, for the dispatcher, which closes it."""
        return EngineClient(
            self._engines[name].control.url,
            concurrency=self._sglang.server_concurrency,
            name=name,
            attention_ranks=self._sglang.dp_size if self._sglang.enable_dp_attention else 1,
            secret=self._secret,
        )

    def clients(self) -> list[EngineClient]:
        """New clients of the engines that are up."""
        return [self.client(name) for name in self.up]

    def weight_version(self, name: str) -> int:
        """Of the weights that an engine was given; BOOT_VERSION since it was started, or has released them."""
        return self._engines[name].weight_version

    def given(self, names: Iterable[str], version: int) -> None:
        """Take note that these engines were given weights."""
        for name in names:
            self._engines[name].weight_version = version

    def listen(self, on_down: OnDown) -> None:
        """Have `on_down(name, reason)` called once for each engine that goes down by itself."""
        self._on_down = on_down

    def report_down(self, name: str, reason: str) -> None:
        """Say that an engine is dead or unhealthy; made to be the Dispatcher's on_down."""
        engine = self._engines[name]
        if not engine.is_up:
            return
        engine.is_up, engine.weight_version = False, BOOT_VERSION
        logger.warning("%s is down: %s", name, reason)
        if self._on_down is not None:
            self._on_down(name, reason)

    async def release_memory(self) -> Mapping[str, str]:
        """Let all engines that are up give their memory back; they are idle. Those that do not are down, and named."""
        return await self._order(PlacedEngine.release)

    async def resume_weights(self) -> Mapping[str, str]:
        """Let them take memory for weights, which have to be sent then."""
        return await self._order(lambda engine: engine.resume(["weights"]))

    async def resume_cache(self) -> Mapping[str, str]:
        """Let them take memory for all else: they can generate then."""
        return await self._order(lambda engine: engine.resume(["kv_cache", "cuda_graph"]))

    async def restart(self, name: str, deadline_s: float) -> None:
        """End an engine's processes and start new ones, with all memory and BOOT_VERSION. Raises EngineError."""
        engine = self._engines[name]
        await engine.stop()
        failed = await self._each([engine], lambda engine: engine.start(deadline_s))
        if failed:
            raise EngineError(failed[name])

    async def stop(self, names: Iterable[str]) -> None:
        """End the processes of these engines: they hold no memory then, and are down."""
        await asyncio.gather(*(self._engines[name].stop() for name in names))

    async def close(self) -> None:
        """End all engines. Raises nothing."""
        if self._watch is not None:
            self._watch.cancel()
        await self.stop(self._engines)

    @property
    def _up(self) -> list[PlacedEngine]:
        return [engine for engine in self._engines.values() if engine.is_up]

    async def _order(self, order: Callable[[PlacedEngine], Awaitable[None]]) -> dict[str, str]:
        async def within_time(engine: PlacedEngine) -> None:
            try:
                async with asyncio.timeout(_ORDER_S):
                    await order(engine)
            except asyncio.CancelledError:
                engine.is_up = False  # nobody knows what memory it has now
                raise

        failed = await self._each(self._up, within_time)
        for name, reason in failed.items():
            self.report_down(name, reason)
        return failed

    async def _each(
        self, engines: Sequence[PlacedEngine], work: Callable[[PlacedEngine], Awaitable[None]]
    ) -> dict[str, str]:
        """Work on all at once; says for which it failed and why."""
        outcomes = await asyncio.gather(*map(work, engines), return_exceptions=True)
        failed = {}
        for engine, outcome in zip(engines, outcomes, strict=True):
            if isinstance(outcome, R1hpcError | TimeoutError):
                failed[engine.name] = str(outcome) or f"{engine.name} did not answer in time"
            elif isinstance(outcome, BaseException):
                raise outcome
        return failed

    async def _look_forever(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            engines = self._up
            ends = await asyncio.gather(*(engine.ended() for engine in engines))
            for engine, end in zip(engines, ends, strict=True):
                if end is not None:
                    self.report_down(engine.name, end)
