"""Who goes next: groups stay together, in the order they came, and those that were interrupted go first."""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import pytest

from r1hpc.rollout.client import EngineClient
from r1hpc.rollout.fleet import Engine
from r1hpc.rollout.protocol import Request
from r1hpc.rollout.sampling import SamplingParams
from r1hpc.rollout.waiting import Flight, Waiting


@pytest.fixture
def engines() -> list[Engine]:
    return [Engine(EngineClient(f"http://127.0.0.1:{port}", concurrency=1), 0) for port in (1, 2)]


def fly(waiting: Waiting, *names: str) -> list[Flight]:
    """Flights "g1a", "g1b", ... of group 1, that wait."""
    flights = []
    for name in names:
        request = Request(numpy.array([1], numpy.int32), SamplingParams(1.0, 1.0, -1, 5), name)
        flights.append(Flight(request, int(name[1])))
        waiting.enter(flights[-1])
        waiting.add(flights[-1])
    return flights


def taken(waiting: Waiting, engine: Engine, count: int) -> list[str]:
    flights = [waiting.take(engine, [engine]) for _ in range(count)]
    return [flight.request.request_id for flight in flights if flight is not None]


def drained(waiting: Waiting, engine: Engine) -> Iterator[str]:
    while (flight := waiting.take(engine, [engine])) is not None:
        yield flight.request.request_id


def test_groups_stay_together_and_in_order(engines: list[Engine]) -> None:
    waiting = Waiting()
    fly(waiting, "g1a", "g2a", "g1b", "g3a", "g2b")
    assert taken(waiting, engines[0], 1) == ["g1a"]
    assert taken(waiting, engines[1], 1) == ["g2a"]
    assert taken(waiting, engines[0], 3) == ["g1b", "g3a"]
    fly(waiting, "g1c", "g2c")
    assert taken(waiting, engines[1], 3) == ["g2b", "g2c"]
    assert taken(waiting, engines[0], 2) == ["g1c"]
    assert len(waiting) == 0


def test_a_group_that_has_ended_is_dealt_anew(engines: list[Engine]) -> None:
    waiting = Waiting()
    (flight,) = fly(waiting, "g1a")
    assert taken(waiting, engines[0], 1) == ["g1a"]
    waiting.leave(flight)
    fly(waiting, "g1b")
    assert taken(waiting, engines[1], 1) == ["g1b"]


def test_what_was_dealt_to_an_engine_that_leaves_goes_elsewhere_first(engines: list[Engine]) -> None:
    waiting = Waiting()
    fly(waiting, "g1a", "g1b", "g1c", "g2a", "g3a")
    assert taken(waiting, engines[0], 1) == ["g1a"]
    waiting.release(engines[0])
    assert taken(waiting, engines[0], 1) == ["g1b"]
    waiting.release(engines[0])
    assert list(drained(waiting, engines[1])) == ["g1c", "g2a", "g3a"]


def test_an_interrupted_one_goes_before_those_that_have_not_begun(engines: list[Engine]) -> None:
    waiting = Waiting()
    begun, _ = fly(waiting, "g1a", "g1b")
    assert taken(waiting, engines[0], 1) == ["g1a"]
    fly(waiting, "g2a")
    begun.faults.append("engine0 died")
    waiting.release(engines[0])
    waiting.add(begun)
    assert list(drained(waiting, engines[1])) == ["g1a", "g1b", "g2a"]


def test_one_that_goes_away_is_taken_out_wherever_it_waits(engines: list[Engine]) -> None:
    waiting = Waiting()
    flights = fly(waiting, "g1a", "g1b", "g1c", "g2a")
    assert taken(waiting, engines[0], 1) == ["g1a"]
    waiting.discard(flights[1])
    waiting.discard(flights[3])
    waiting.discard(flights[3])
    assert len(waiting) == 1
    assert list(drained(waiting, engines[1])) == []
    assert [flight.request.request_id for flight in waiting.take_all()] == ["g1c"]
