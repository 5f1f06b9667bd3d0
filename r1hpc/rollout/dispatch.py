"""All engines as one: each response is generated once, wherever engines live, and is never lost with one of them.

A request waits here, not in an engine's queue, until an engine with the current weights has a place. When that engine
dies, or fails at it, the request goes on at another with what has arrived as the beginning of its response: tokens,
log-probs and weight versions stay those of the engine that generated them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace

from r1hpc.errors import R1hpcError
from r1hpc.rollout.client import EngineClient, EngineGone
from r1hpc.rollout.fleet import Engine, EngineStatus, Fleet
from r1hpc.rollout.protocol import EngineRefusal, Request, Response
from r1hpc.rollout.transport import allow_connections
from r1hpc.rollout.waiting import Flight, Waiting
from r1hpc.types import Generation


class DispatchError(R1hpcError):
    """A response that no engine could finish; says what each attempt met with."""


class NoEngineError(DispatchError):
    """No engine with the current weights, for too long; names each and why."""


class EngineStopError(DispatchError):
    """Engines that would not stop; names each and what it still runs."""


@dataclass(frozen=True)
class DispatchLimits:
    """When to give up, in seconds and attempts."""

    attempts: int = 6
    """Of one response. A request that kills each engine that it meets must not kill them all for ever."""
    backoff_s: float = 0.5
    """Unit of the pause before another attempt: 0, 1, 3, 7, 15 times this."""
    no_engine_s: float = 1800.0
    """Without any engine that may serve: time to restart one and give it weights."""
    poll_s: float = 0.3
    """Between two looks at an engine that is stopping."""
    health_interval_s: float = 15.0
    health_misses: int = 3


class Dispatcher:
    """Deals requests to engines. One event loop; engines may be added and removed at any time."""

    def __init__(self, limits: DispatchLimits | None = None, on_down: Callable[[str, str], None] | None = None) -> None:
        """`on_down(name, reason)` is called when an engine is found dead or unhealthy: restart it, add it again."""
        self._limits = limits or DispatchLimits()
        self._fleet = Fleet(self._deal, on_down, self._limits.health_interval_s, self._limits.health_misses)
        self._waiting = Waiting()
        self._flights: set[Flight] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopped: asyncio.Event | None = None
        self._without_engine_since: float | None = None

    @property
    def engines(self) -> list[EngineStatus]:
        """Every engine that was added, also those that are down."""
        return [engine.status for engine in self._fleet.all.values()]

    @property
    def num_waiting(self) -> int:
        """Requests without a place at an engine."""
        return len(self._waiting)

    def add(self, client: EngineClient, weight_version: int | None = None) -> None:
        """Take in an engine that has weights of `weight_version`, or one of the same name again after a restart.

        It is this dispatcher that closes the client. An engine without the current version (see `publish`) waits.
        """
        others = sum(engine.client.concurrency for engine in self._fleet.reachable if engine.name != client.name)
        allow_connections(others + client.concurrency)
        self._fleet.add(client, weight_version)

    def remove(self, name: str, reason: str = "removed by its owner") -> None:
        """Take an engine out at once, because its process has ended or will; what it was doing goes on elsewhere."""
        self._fleet.down(self._fleet.all[name], reason)

    def publish(self, weight_version: int, names: list[str] | None = None) -> None:
        """Say that these engines (None: all) were given `weight_version`: only engines that have it serve from now on.

        Replies are held to it: tokens of any other version are dropped, and their engine gets nothing more.
        """
        self._fleet.publish(weight_version, names)

    def start(self) -> None:
        """Accept requests, and watch the health of the engines, until `stop`.

        Raises DispatchError while others' requests are under way: whoever stops first would abort the other's.
        """
        if self._flights and self._stopped is not None and not self._stopped.is_set():
            raise DispatchError(
                f"the engines are in use, with {len(self._flights)} requests: a rollout and an evaluation take turns;"
                " wait for the one that runs"
            )
        if self._stopped is None or self._stopped.is_set():
            self._stopped = asyncio.Event()
        self._without_engine_since = None
        self._fleet.start_watching()
        self._deal()

    async def close(self) -> None:
        """Answer what is pending as aborted and close every client; engines are not waited for."""
        self._refuse()
        await self._fleet.close()
        await self._idle.wait()

    async def generate(self, request: Request, group: int) -> Generation:
        """The response to `request`, exactly one; "abort" with what there is if `stop` comes first.

        Raises EngineRefusal (the request is wrong), NoEngineError, or DispatchError after too many failed attempts.
        """
        if self._stopped is None:
            raise DispatchError("the dispatcher accepts no requests yet: call start() first")
        flight = Flight(request, group)
        self._flights.add(flight)
        self._idle.clear()
        self._waiting.enter(flight)
        try:
            return await self._fly(flight, self._stopped)
        finally:
            self._waiting.leave(flight)
            self._flights.discard(flight)
            if not self._flights:
                self._idle.set()

    async def _fly(self, flight: Flight, stopped: asyncio.Event) -> Generation:
        while not stopped.is_set():
            if flight.request.tokens_left <= 0:
                return flight.request.so_far("length")
            engine = await self._place(flight)
            if engine is None:
                break
            try:
                # Between the place and here the engine may have been taken out, and nothing aborts what begins there.
                too_late = stopped.is_set() or engine.state == "down"
                done = None if too_late else await self._attempt(engine, flight, stopped)
            finally:
                engine.taken -= 1
                self._deal()
            if done is not None:
                return done
            await self._pause(flight, stopped)
        return flight.request.so_far("abort")

    async def _place(self, flight: Flight) -> Engine | None:
        place: asyncio.Future[Engine | None] = asyncio.get_running_loop().create_future()
        flight.place = place
        self._waiting.add(flight)
        self._deal()
        try:
            while not place.done():
                await asyncio.wait({place}, timeout=self._patience())
                if not place.done() and self._patience() <= 0:
                    raise self._no_engine()
            return place.result()
        except BaseException:
            if place.done() and (engine := place.result()) is not None:
                engine.taken -= 1
                self._deal()
            self._waiting.discard(flight)
            raise

    async def _attempt(self, engine: Engine, flight: Flight, stopped: asyncio.Event) -> Generation | None:
        response = Response(flight.request, engine.name)
        version = engine.weight_version
        fault = await _read(engine, response)
        if version is not None and response.versions - {version}:
            (other, *_) = response.versions - {version}
            self._fleet.stale(engine, other)
            flight.faults.append(f"{engine.name}: generated with weights {other}, not {version}")
            return None
        # Whatever ended the reading: a response that is whole must not be gone on with.
        if response.finish_reason in ("stop", "length"):
            engine.finished += 1
            return response.generation(response.finish_reason)
        flight.request = replace(flight.request, begun=response.generation("abort"))
        if stopped.is_set():
            return flight.request.so_far("abort")
        if isinstance(fault, EngineRefusal):
            raise fault
        if isinstance(fault, EngineGone):
            self._fleet.suspect(engine, str(fault))
        flight.failed_at.add(engine)
        flight.faults.append(str(fault) if fault else f"{engine.name}: {engine.reason or 'aborted by somebody else'}")
        return None

    async def _pause(self, flight: Flight, stopped: asyncio.Event) -> None:
        count = len(flight.faults)
        if count >= self._limits.attempts:
            faults = "\n".join(f"  {fault}" for fault in flight.faults)
            done = 0 if flight.request.begun is None else len(flight.request.begun.tokens)
            raise DispatchError(
                f"{flight.request.request_id}: given up after {count} attempts and {done} tokens:\n{faults}"
            )
        if seconds := self._limits.backoff_s * (2 ** max(count - 1, 0) - 1):
            try:
                await asyncio.wait_for(stopped.wait(), seconds)
            except TimeoutError:
                return

    async def stop(self, deadline_s: float) -> None:
        """Abort everything. When this returns no engine runs a request and every `generate` has its answer.

        Raises EngineStopError past the deadline, after answering all that is pending: names the engines that still
        run something (the owner should restart them before their memory is released).
        """
        self._refuse()
        end = asyncio.get_running_loop().time() + deadline_s
        left = await asyncio.gather(*(self._silence(engine, end) for engine in self._fleet.reachable))
        for engine in self._fleet.reachable:
            for read in engine.reads:
                read.cancel()
        await self._idle.wait()
        if loud := [what for what in left if what]:
            raise EngineStopError(f"not stopped within {deadline_s:g} s:\n" + "\n".join(f"  {what}" for what in loud))

    def _refuse(self) -> None:
        if self._stopped is not None:
            self._stopped.set()
        self._fleet.stop_watching()
        for flight in self._waiting.take_all():
            if flight.place is not None and not flight.place.done():
                flight.place.set_result(None)

    async def _silence(self, engine: Engine, end: float) -> str:
        """Abort what `engine` runs, again and again, as a request may still be on its way to it. Empty when quiet."""
        what = "it did not answer"
        try:
            async with asyncio.timeout_at(end):
                while engine.state != "down":
                    try:
                        await engine.client.abort_all()
                        running = await engine.client.running()
                        if not running and not engine.reads:
                            return ""
                        what = f"{running} requests still run, {len(engine.reads)} of them ours"
                    except EngineGone as error:
                        await asyncio.shield(self._fleet.suspect(engine, str(error)))
                        continue
                    except R1hpcError as error:
                        what = str(error)
                    await asyncio.sleep(self._limits.poll_s)
        except TimeoutError:
            return f"{engine.name}: {what}"
        return ""

    def _deal(self) -> None:
        """Give free places to those who wait, the least loaded engine first."""
        serving = []
        for engine in self._fleet.all.values():
            if self._fleet.serves(engine):
                serving.append(engine)
            else:
                self._waiting.release(engine)
        now = asyncio.get_running_loop().time()
        self._without_engine_since = None if serving else self._without_engine_since or now
        while free := [engine for engine in serving if engine.taken < engine.client.concurrency]:
            for engine in sorted(free, key=_load):
                if (flight := self._waiting.take(engine, serving)) is not None:
                    engine.taken += 1
                    assert flight.place is not None
                    flight.place.set_result(engine)
                    break
            else:
                return

    def _patience(self) -> float:
        """Seconds that waiting may go on, as things are now."""
        if self._without_engine_since is None:
            return self._limits.no_engine_s
        return self._limits.no_engine_s - (asyncio.get_running_loop().time() - self._without_engine_since)

    def _no_engine(self) -> NoEngineError:
        version = self._fleet.weight_version
        wanted = "" if version is None else f" with weights {version}"
        engines = "".join(
            f"\n  {known.name}: {known.state}, weights {known.weight_version}{known.reason and ': ' + known.reason}"
            for known in self.engines
        )
        return NoEngineError(
            f"no engine{wanted} to serve for {self._limits.no_engine_s:g} s: {len(self.engines)} known{engines}"
        )


async def _read(engine: Engine, response: Response) -> R1hpcError | None:
    """Read one attempt in a task of its own, so that taking the engine out can end it; returns what went wrong."""
    read = asyncio.get_running_loop().create_task(engine.client.read(response))
    engine.reads.add(read)
    try:
        await asyncio.wait({read})
    finally:
        engine.reads.discard(read)
        if not read.done():
            read.cancel()
            await asyncio.wait({read})
    if read.cancelled() or (fault := read.exception()) is None:
        return None
    if isinstance(fault, R1hpcError):
        return fault
    raise fault


def _load(engine: Engine) -> float:
    return engine.taken / engine.client.concurrency
