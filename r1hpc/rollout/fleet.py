"""The engines of a run: which may serve now, and how it is found out that one may not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Literal

from r1hpc.errors import R1hpcError
from r1hpc.rollout.client import EngineClient, EngineGone
from r1hpc.types import FinishReason

logger = logging.getLogger(__name__)

EngineState = Literal["up", "suspect", "down"]


@dataclass(frozen=True)
class EngineStatus:
    """An engine as people and the owner see it."""

    name: str
    state: EngineState
    """suspect: a connection broke, and a probe is out."""
    weight_version: int | None
    in_flight: int
    reason: str
    """Why it is not up; empty if it is."""
    finished: int = 0
    """Responses that came to their end here since it was added."""


@dataclass(eq=False)
class Engine:
    """One engine that was added, and what is at it."""

    client: EngineClient
    weight_version: int | None
    state: EngineState = "up"
    reason: str = ""
    taken: int = 0
    """Places given away."""
    reads: set[asyncio.Task[FinishReason]] = field(default_factory=set)
    misses: int = 0
    """Health checks without an answer, in a row."""
    probe: asyncio.Task[None] | None = None
    finished: int = 0
    """Responses that came to their end here."""

    @property
    def name(self) -> str:
        """Of the client."""
        return self.client.name

    @property
    def status(self) -> EngineStatus:
        """For people."""
        return EngineStatus(self.name, self.state, self.weight_version, len(self.reads), self.reason, self.finished)


class Fleet:
    """All engines. An engine that is down stays so until its owner adds it again, with weights."""

    def __init__(
        self,
        changed: Callable[[], None],
        on_down: Callable[[str, str], None] | None = None,
        health_interval_s: float = 15.0,
        health_misses: int = 3,
    ) -> None:
        """`changed` is called whenever an engine may have become able or unable to serve, `on_down(name, reason)` when
        one was found dead or unhealthy."""
        self.weight_version: int | None = None
        """What engines must have to serve; None: anything."""
        self.all: dict[str, Engine] = {}
        self._changed = changed
        self._on_down = on_down
        self._health_interval_s = health_interval_s
        self._health_misses = health_misses
        self._background: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None

    def serves(self, engine: Engine) -> bool:
        """Whether `engine` may be given requests."""
        current = self.weight_version is None or engine.weight_version == self.weight_version
        return engine.state == "up" and current

    @property
    def reachable(self) -> list[Engine]:
        """Those that may be running something."""
        return [engine for engine in self.all.values() if engine.state != "down"]

    def add(self, client: EngineClient, weight_version: int | None) -> None:
        """Take in an engine, or one of the same name again after a restart. The client is closed here."""
        if client.name in self.all:
            self.down(self.all[client.name], "replaced")
        self.all[client.name] = Engine(client, weight_version)
        self._changed()

    def publish(self, weight_version: int, names: list[str] | None) -> None:
        """Record that the engines named have `weight_version`, which all must have from now on."""
        self.weight_version = weight_version
        for name in self.all if names is None else names:
            self.all[name].weight_version = weight_version
        self._changed()

    def down(self, engine: Engine, reason: str) -> None:
        """Take `engine` out at once; what it was doing goes on elsewhere."""
        if engine.state == "down":
            return
        engine.state, engine.reason = "down", reason
        for read in engine.reads:
            read.cancel()
        self._spawn(_part(engine))
        self._changed()

    def _lost(self, engine: Engine, reason: str) -> None:
        if engine.state == "down":
            return
        logger.warning("engine %s is out, with %d requests: %s", engine.name, len(engine.reads), reason)
        self.down(engine, reason)
        if self._on_down is None:
            return
        try:
            self._on_down(engine.name, reason)
        except Exception:
            # The watch over the other engines, in which this may run, must not end with it.
            logger.exception("the owner's on_down failed for engine %s: nobody may be restarting it", engine.name)

    def stale(self, engine: Engine, weight_version: int) -> None:
        """Record that `engine` turned out to have other weights than it was given: somebody restarted it."""
        logger.warning(
            "engine %s serves weights %d, not %s: no requests until the next publish",
            engine.name,
            weight_version,
            engine.weight_version,
        )
        engine.weight_version = weight_version
        self._changed()

    def suspect(self, engine: Engine, why: str) -> asyncio.Task[None]:
        """Give `engine` nothing until a probe, which this starts, has found it alive or dead."""
        if engine.probe is None:
            if engine.state == "up":
                engine.state, engine.reason = "suspect", why
                self._changed()
            engine.probe = self._spawn(self._probe(engine, why))
        return engine.probe

    async def _probe(self, engine: Engine, why: str) -> None:
        try:
            version = await engine.client.weight_version()
        except R1hpcError as error:
            self._lost(engine, f"{why}; {error}")
        else:
            if engine.state == "suspect":
                engine.state, engine.reason = "up", ""
                if engine.weight_version not in (None, version):
                    self.stale(engine, version)
        finally:
            engine.probe = None
            self._changed()

    def start_watching(self) -> None:
        """Check the health of every engine at intervals, until `stop_watching`."""
        if self._watch is None:
            self._watch = asyncio.get_running_loop().create_task(self._watch_forever())

    def stop_watching(self) -> None:
        """Leave the engines alone: between rollouts their memory may be released, and they do not answer."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    async def _watch_forever(self) -> None:
        while True:
            await asyncio.sleep(self._health_interval_s)
            await asyncio.gather(*(self._check(engine) for engine in self.reachable))

    async def _check(self, engine: Engine) -> None:
        try:
            await engine.client.health()
        except EngineGone as error:
            self.suspect(engine, str(error))
        except R1hpcError as error:
            engine.misses += 1
            if engine.misses >= self._health_misses:
                self._lost(engine, f"unhealthy {engine.misses} times in a row: {error}")
        else:
            engine.misses = 0

    async def close(self) -> None:
        """End everything that this began."""
        self.stop_watching()
        for engine in self.reachable:
            self.down(engine, "closed")
        if self._background:
            await asyncio.wait(self._background)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


async def _part(engine: Engine) -> None:
    """Close the client once the last read has unwound and has told the engine to drop its request."""
    if engine.reads:
        await asyncio.wait(engine.reads)
    await engine.client.close()
