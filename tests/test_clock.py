"""When to commit and when to leave: a run of 10-minute iterations and 60-second saves, its clock turned by hand."""

from __future__ import annotations

import json
import math

import pytest

from r1hpc.clock import MARGIN_S, REMEMBERED, Durations, SaveClock, SavePolicy

START = 1_000_000.0


class Watch:
    """The time, as the test says."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def watch() -> Watch:
    return Watch()


def clock(watch: Watch, policy: SavePolicy, minutes: float | None = None, first: int = 0) -> SaveClock:
    """A clock of an allocation of so many minutes from START, which knows 60 s saves and 600 s iterations."""
    end = None if minutes is None else START + 60 * minutes
    save, iteration = Durations(60.0), Durations(600.0)
    return SaveClock(policy, first, end, save=save, iteration=iteration, now=watch)


def test_p95_is_the_nearest_rank_and_the_plan_counts_while_few_are_measured() -> None:
    durations = Durations(prior_s=50.0)
    assert durations.p95_s == 50.0
    durations.add(10.0)
    durations.add(70.0)
    assert durations.p95_s == 70.0  # measured, and above the plan's
    durations = Durations(prior_s=50.0, measured=[10.0, 20.0])
    assert durations.p95_s == 50.0
    durations.add(30.0)
    assert durations.p95_s == 30.0  # three are enough: the plan was wrong
    durations = Durations(measured=[float(seconds) for seconds in range(20, 0, -1)])
    assert durations.p95_s == 19.0  # of 1..20: 19 of 20 do not exceed it


def test_only_the_last_durations_are_remembered() -> None:
    durations = Durations()
    for seconds in range(100):
        durations.add(seconds)
    assert durations.measured == [float(seconds) for seconds in range(100 - REMEMBERED, 100)]
    assert durations.p95_s == 98.0


def test_a_commit_is_due_every_so_many_iterations_counted_from_the_last(watch: Watch) -> None:
    by_count = clock(watch, SavePolicy(iterations=3), first=5)
    assert [by_count.is_due(iteration) for iteration in (4, 5, 6, 7)] == [False, False, False, True]
    by_count.saved(7, 60.0, begun=60.0)
    assert [by_count.is_due(iteration) for iteration in (7, 8, 9, 10)] == [False, False, False, True]


def test_a_commit_is_due_every_so_many_minutes_from_where_the_last_began(watch: Watch) -> None:
    by_minutes = clock(watch, SavePolicy(minutes=30))
    watch.now = START + 1799
    assert not by_minutes.is_due(2)
    watch.now = START + 1800
    assert by_minutes.is_due(2)
    watch.now = START + 1900
    by_minutes.saved(2, 40.0, begun=100.0)  # at 1800
    watch.now = START + 3599
    assert not by_minutes.is_due(3)
    watch.now = START + 3600
    assert by_minutes.is_due(3)
    assert not by_minutes.is_due(2)  # nothing new


def test_without_a_policy_or_an_end_nothing_is_ever_due(watch: Watch) -> None:
    free = clock(watch, SavePolicy())
    watch.now = START + 1e9
    assert not free.is_due(1000)
    assert free.out_of_time() is None
    assert free.seconds_left() is None
    assert free.patience_s() == math.inf


def test_before_the_allocation_ends_the_last_commit_is_due_and_no_iteration_starts(watch: Watch) -> None:
    ending = clock(watch, SavePolicy(iterations=100), minutes=60)
    # 600 s of an iteration, 60 s of a save and the margin have to fit: until 3600 - 670.
    watch.now = START + 3600 - 600 - 60 - MARGIN_S
    assert ending.out_of_time() is None
    assert not ending.is_due(0)
    watch.now += 1
    assert ending.out_of_time() == (
        "669 s of the allocation are left, an iteration and its save need 600 + 60 s, leaving 10 s"
    )
    assert ending.is_due(0)
    ending.saved(0, 60.0, begun=60.0)
    assert not ending.is_due(0)


def test_measured_durations_move_the_last_moment(watch: Watch) -> None:
    ending = clock(watch, SavePolicy(iterations=100), minutes=60)
    for iteration in range(3):
        ending.iterated(1000.0)
        ending.saved(iteration, 200.0, begun=900.0)
    watch.now = START + 3600 - 1210
    assert ending.out_of_time() is None
    watch.now += 1
    assert ending.out_of_time() is not None


def test_the_next_attempt_knows_what_the_commit_remembers(watch: Watch) -> None:
    first = clock(watch, SavePolicy())
    for iteration, seconds in enumerate((100.0, 300.0, 200.0)):
        first.iterated(10 * seconds)
        first.updated(2 * seconds)
        first.saved(iteration, seconds, begun=5 * seconds)
    record = json.loads(json.dumps(first.state()))
    assert record == {
        "save_s": [100.0, 300.0, 200.0],
        "iteration_s": [1000.0, 3000.0, 2000.0],
        "update_s": [200.0, 600.0, 400.0],
    }
    second = clock(watch, SavePolicy(), first=3)
    second.remember(record)
    assert second.save_s() == 300.0
    second.remember({})  # a commit of another version
    assert second.state() == record


@pytest.mark.parametrize(
    ("deadline_s", "end_s", "left_s", "patience_s"),
    [
        (None, 3600.0, 3600.0, 3540.0),
        (30.0, 3600.0, 30.0, 0.0),  # less than a save: leave at once
        (300.0, 3600.0, 300.0, 240.0),  # the update may end, if its commit still fits
        (300.0, 100.0, 100.0, 40.0),  # whichever is earlier
        (-5.0, None, 0.0, 0.0),
    ],
)
def test_what_is_left_at_a_stop_request(
    watch: Watch, deadline_s: float | None, end_s: float | None, left_s: float, patience_s: float
) -> None:
    asked = None if deadline_s is None else START + deadline_s
    end = None if end_s is None else START + end_s
    stopping = SaveClock(SavePolicy(), 0, end, lambda: asked, save=Durations(60.0), now=watch)
    assert stopping.seconds_left() == left_s
    assert stopping.patience_s() == patience_s


def test_a_save_under_way_needs_only_the_rest(watch: Watch) -> None:
    stopping = clock(watch, SavePolicy())
    assert (stopping.save_s(), stopping.save_s(begun=45.0), stopping.save_s(begun=90.0)) == (60.0, 15.0, 0.0)
