"""How long is left, by the signal that came; and what of it the driver hears."""

from __future__ import annotations

import datetime
import json
import math
import os
import threading
from pathlib import Path

import pytest

from r1hpc.cluster.grace import DEFAULT_KILL_WAIT_S, Grace, read_grace
from r1hpc.cluster.job_word import JobWord, read_job
from r1hpc.cluster.stop import StopListener
from r1hpc.cluster.stop_requests import StopRequests, no_grace_left

NOW = 5000.0


@pytest.mark.parametrize(
    ("grace", "signal_name", "left_s"),
    [
        # The warning before the time limit, up to 60 s early: all of the lead, but for the margin of 2 s.
        (Grace(NOW + 1800, 1800, 120, 30), "SIGUSR1", 1798),
        (Grace(NOW + 1860, 1800, 120, 30), "SIGUSR1", 1858),
        # The same signal long before it: a preemption with preempt_send_user_signal.
        (Grace(NOW + 1861, 1800, 120, 30), "SIGUSR1", 118),
        (Grace(None, 1800, 120, 30), "SIGUSR1", 118),
        # TERM comes at a preemption, whatever the time limit.
        (Grace(NOW + 1800, 1800, 120, 30), "SIGTERM", 118),
        # Without a grace time the kill follows: a third of KillWait is the agents'.
        (Grace(NOW + 9000, 1800, 0, 30), "SIGTERM", 10),
        (Grace(NOW + 9000, 1800, 0, 3), "SIGTERM", 1),
        (Grace(NOW + 9000, 1800, 1, 30), "SIGTERM", 0),
    ],
)
def test_the_deadline_of_a_first_request(grace: Grace, signal_name: str, left_s: float) -> None:
    assert grace.deadline(signal_name, NOW) == NOW + left_s


def test_what_the_batch_host_did_not_learn_is_taken_for_slurms_default(tmp_path: Path) -> None:
    begin, run = tmp_path / "begin.json", tmp_path / "run.json"
    begin.write_text(json.dumps({"end_time": 9000.0, "grace_s": 120.0, "kill_wait_s": 60.0}))
    run.write_text(json.dumps({"signal_lead_s": 900}))
    assert read_grace(begin, run) == Grace(9000.0, 900.0, 120.0, 60.0)
    begin.write_text(json.dumps({"end_time": None, "grace_s": None, "kill_wait_s": None}))
    run.write_text("{}")
    assert read_grace(begin, run) == Grace(None, 0.0, 0.0, DEFAULT_KILL_WAIT_S)
    begin.write_text("{}")
    assert read_grace(begin, run) == Grace(None, 0.0, 0.0, 30.0)


@pytest.mark.parametrize(
    ("stops", "final"),
    [
        ([], False),
        (["SIGTERM at node01", "SIGTERM at node02"], False),
        (["SIGUSR1 at node01", "SIGTERM at node02"], False),
        (["SIGTERM at node01", "SIGUSR1 at node01"], False),
        (["SIGUSR1 at node01", "SIGUSR1 at node01"], False),
        (["SIGUSR1 at node01", "SIGTERM at node01"], True),
        (["SIGTERM at node02", "SIGUSR1 at node01", "SIGTERM at node02"], True),
    ],
)
def test_a_term_after_any_request_at_the_same_node_means_that_no_grace_is_left(stops: list[str], final: bool) -> None:
    assert no_grace_left(stops) is final


def test_the_head_waits_for_the_driver_until_the_grace_ends_and_no_longer_once_the_last_term_came() -> None:
    stops = StopRequests(Grace(None, 0, grace_s=60, kill_wait_s=30))
    assert (bool(stops), stops.deadline, stops.over(NOW)) == (False, None, False)
    stops.add("SIGTERM at node01", NOW, at_work=True)
    stops.add("SIGTERM at node02", NOW + 1, at_work=True)  # the same request, heard later
    assert stops.deadline == NOW + 58
    assert not stops.over(NOW + 58)
    assert stops.over(NOW + 58.1)
    stops.add("SIGTERM at node02", NOW + 20, at_work=True)  # Slurm has changed its mind: the kill is near
    assert stops.deadline == NOW + 25
    assert str(stops) == "SIGTERM at node01, SIGTERM at node02"


def test_slurms_word_tells_a_scancel_from_a_preemption() -> None:
    def asked() -> StopRequests:
        stops = StopRequests(Grace(None, 0, grace_s=300, kill_wait_s=30))
        assert not stops.is_doubtful
        stops.add("SIGTERM at node01", NOW, at_work=True)
        assert (stops.is_doubtful, stops.deadline) == (True, NOW + 298)
        return stops

    cancelled, preempted, signalled = asked(), asked(), asked()
    assert cancelled.learn(JobWord("COMPLETING", None))
    assert cancelled.deadline == NOW + 10  # a third of KillWait, from the signal on
    assert preempted.learn(JobWord("RUNNING", NOW - 4))  # the grace had begun before the signal was heard
    assert preempted.deadline == NOW + 294
    assert not signalled.learn(JobWord("RUNNING", None))
    assert signalled.deadline == NOW + 298
    assert not StopRequests(Grace(None, 0, grace_s=0, kill_wait_s=30)).is_doubtful


def test_slurms_word_is_read_from_scontrol() -> None:
    line = "JobId=7 JobState=RUNNING Reason=None StartTime=2026-11-23T10:00:00 PreemptTime={}"
    at = datetime.datetime(2026, 11, 23, 11, 0, 0).timestamp()
    assert read_job(line.format("2026-11-23T11:00:00")) == JobWord("RUNNING", at)
    assert read_job(line.format("2026-11-23T09:00:00")) == JobWord("RUNNING", None)  # of an earlier start
    assert read_job(line.format("None")) == JobWord("RUNNING", None)
    assert read_job("") is None


def test_a_driver_that_has_nothing_to_save_leaves_within_seconds_and_within_a_third_of_a_short_kill_wait() -> None:
    for kill_wait_s, left_s in ((30, 5), (6, 2)):
        stops = StopRequests(Grace(NOW + 9000, 1800, grace_s=60, kill_wait_s=kill_wait_s))
        stops.add("SIGUSR1 at node01", NOW, at_work=False)
        assert stops.deadline == NOW + left_s


def _message(request: str, deadline: float) -> str:
    return json.dumps({"stop": request, "deadline": deadline}) + "\n"


def test_the_listener_keeps_the_earliest_deadline_and_calls_once_a_request() -> None:
    calls: list[int] = []
    enough = threading.Event()

    def called() -> None:
        calls.append(len(calls))
        if len(calls) == 3:
            enough.set()

    read_end, write_end = os.pipe()
    with open(read_end, encoding="utf-8") as heard, open(write_end, "w", encoding="utf-8") as told:
        listener = StopListener(heard)
        assert (listener.requested, listener.deadline) == (None, None)
        listener.call(called)
        told.write(_message("SIGTERM at node02", math.inf) + _message("SIGTERM at node01", 700.0))
        told.close()
        assert enough.wait(10)
    assert listener.requested == "SIGTERM at node02, SIGTERM at node01, the agent's end"
    assert listener.deadline == 700.0
    late = threading.Event()
    listener.call(late.set)
    assert late.is_set()
