"""Who goes next: requests that wait for a place at an engine, those of one group for the same engine."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass, field

from r1hpc.rollout.fleet import Engine
from r1hpc.rollout.protocol import Request


@dataclass(eq=False)
class Flight:
    """One response on its way, over all its attempts."""

    request: Request
    """With what was generated so far."""
    group: int
    faults: list[str] = field(default_factory=list)
    """What went wrong, in order."""
    failed_at: set[Engine] = field(default_factory=set)
    """Engines that answered it with a fault: it goes to them again only when every engine has."""
    place: asyncio.Future[Engine | None] | None = None
    """While it waits: becomes the engine that has a place for it, or None when the rollout is stopped."""


class Waiting:
    """Flights that wait for a place. A group is dealt to an engine when the first of it gets a place, not before.

    So engines draw work as they get free, and the prompts' prefix is computed once a group, in one engine's cache.
    """

    def __init__(self) -> None:
        self._bound: dict[int, Engine] = {}
        self._members: dict[int, int] = {}
        self._of_engine: dict[Engine, deque[Flight]] = {}
        self._of_group: OrderedDict[int, deque[Flight]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._of_engine.values())) + sum(map(len, self._of_group.values()))

    def enter(self, flight: Flight) -> None:
        """Count `flight` to its group from now until `leave`."""
        self._members[flight.group] = self._members.get(flight.group, 0) + 1

    def leave(self, flight: Flight) -> None:
        """Forget `flight`; with the last of a group, where it was dealt to."""
        self._members[flight.group] -= 1
        if not self._members[flight.group]:
            del self._members[flight.group]
            self._bound.pop(flight.group, None)

    def add(self, flight: Flight) -> None:
        """Queue `flight`, before the others if it was under way already: it is the nearest to its end."""
        engine = self._bound.get(flight.group)
        if engine is not None and engine in flight.failed_at:
            # An engine that fails at everything is the least loaded of all: its groups must not stay with it.
            del self._bound[flight.group]
            engine = None
        if engine is not None:
            queue = self._of_engine.setdefault(engine, deque())
        else:
            new = flight.group not in self._of_group
            queue = self._of_group.setdefault(flight.group, deque())
            if new and flight.faults:
                self._of_group.move_to_end(flight.group, last=False)
        if flight.faults:
            queue.appendleft(flight)
        else:
            queue.append(flight)

    def discard(self, flight: Flight) -> None:
        """Take `flight` out, wherever it waits."""
        for queues in (self._of_engine, self._of_group):
            for key, queue in list(queues.items()):
                if flight in queue:
                    queue.remove(flight)
                    if not queue:
                        del queues[key]  # type: ignore[arg-type]
                    return

    def take(self, engine: Engine, serving: Collection[Engine]) -> Flight | None:
        """The next for a free place at `engine`: of a group dealt to it, else of the first group dealt to none.

        A flight that failed at `engine` is left for the other `serving` ones, unless it has failed at all of them.
        """
        if queue := self._of_engine.get(engine):
            flight = queue.popleft()
            if not queue:
                del self._of_engine[engine]
            return flight
        allowed = (
            group
            for group, queue in self._of_group.items()
            if engine not in (failed_at := queue[0].failed_at) or failed_at.issuperset(serving)
        )
        if (group := next(allowed, None)) is None:
            return None
        queue = self._of_group.pop(group)
        self._bound[group] = engine
        flight = queue.popleft()
        if queue:
            self._of_engine.setdefault(engine, deque()).extend(queue)
        return flight

    def release(self, engine: Engine) -> None:
        """Undo what was dealt to `engine`: those that wait for it go elsewhere, before all others."""
        for group in [group for group, bound in self._bound.items() if bound is engine]:
            del self._bound[group]
        for flight in reversed(self._of_engine.pop(engine, ())):
            self._of_group.setdefault(flight.group, deque()).appendleft(flight)
            self._of_group.move_to_end(flight.group, last=False)

    def take_all(self) -> list[Flight]:
        """Every flight that waits, taken out."""
        flights = [flight for queues in (self._of_engine, self._of_group) for q in queues.values() for flight in q]
        self._of_engine.clear()
        self._of_group.clear()
        return flights
