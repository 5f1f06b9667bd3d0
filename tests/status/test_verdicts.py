"""How it stands with a run: one test a way that a run may stand."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from r1hpc.cluster.slurm import JobElement, SlurmClient
from r1hpc.rundir import RunDir
from r1hpc.status.noted import NoRun
from r1hpc.status.queue import Queue, ask, grouped
from r1hpc.status.report import gather, look
from r1hpc.status.verdict import Verdict
from tests.status.runs import BEGAN, WrittenRun, no_slurm, slurm, slurm_array

ALL = (("cast", "40"), ("convert", "41"), ("train", "42"))


@pytest.fixture
def written(tmp_path: Path) -> WrittenRun:
    return WrittenRun.prepared(tmp_path)


def test_a_directory_that_is_no_runs(tmp_path: Path) -> None:
    with pytest.raises(NoRun, match="is no run directory"):
        gather(RunDir(tmp_path), BEGAN, no_slurm)


def test_prepared_and_not_submitted(written: WrittenRun) -> None:
    status = written.status(5, slurm())
    assert status.verdict.state == "prepared"
    assert status.verdict.todo == f"python -m r1hpc.submit {written.run.config}"
    assert [stage.state for stage in status.stages] == ["not submitted"] * 3
    assert (status.iterations, status.noted.num_rollout, status.attempts) == (0, 4, ())


def test_submitted_and_waiting(written: WrittenRun) -> None:
    written.submitted(*ALL)
    status = written.status(
        5, slurm(("40", "RUNNING"), ("41", "PENDING", "Dependency"), ("42", "PENDING", "Dependency"))
    )
    assert (status.verdict.state, status.verdict.why) == ("running", "cast 40: RUNNING on node[01-02]")
    assert [(stage.name, stage.state) for stage in status.stages] == [
        ("cast", "running"),
        ("convert", "waiting"),
        ("train", "waiting"),
    ]


def test_an_array_with_a_failed_element_stops_what_waits_for_it(written: WrittenRun) -> None:
    written.submitted(*ALL)
    array = slurm_array("40", "COMPLETED", "FAILED")
    waiting = slurm(("41", "PENDING", "DependencyNeverSatisfied"), ("42", "PENDING", "Dependency"))

    def both(noted: object, ids: frozenset[str]) -> Queue:
        return Queue({**array(noted, ids).jobs, **waiting(noted, ids).jobs})  # type: ignore[arg-type]

    verdict = written.status(5, both).verdict
    assert verdict.state == "failed"
    assert verdict.why == (
        "convert 41 will never run: PENDING (DependencyNeverSatisfied); cast 40: 1 COMPLETED, 1 FAILED"
    )
    assert verdict.todo.startswith("scancel 41, mend it, then python -m r1hpc.submit ")


def test_running(written: WrittenRun) -> None:
    written.submitted(*ALL)
    written.converted()
    written.attempt("42-r0", 10)
    status = written.status(20, slurm(("42", "RUNNING")))
    assert (status.verdict.state, status.verdict.certain) == ("running", True)
    assert [stage.state for stage in status.stages] == ["complete", "complete", "running"]


def _silent(written: WrittenRun, seconds: float, *, iterations: int = 0) -> Verdict:
    """Of a run whose driver said at second 1000 that it updates, so many seconds later; iterations of 900 s."""
    written.submitted(("train", "42"))
    attempt = written.attempt("42-r0", 0)
    for number in range(iterations):
        written.iteration(number, attempt, 1000, 900)
    progress = {"what": "update", "iteration": iterations, "since": BEGAN + 1000, "now": BEGAN + 1000}
    attempt.progress.write_text(json.dumps(progress), encoding="utf-8")
    return written.status(1000 + seconds, slurm(("42", "RUNNING"))).verdict


@pytest.mark.parametrize(("iterations", "bound"), [(0, 3600), (2, 2700)])
def test_a_driver_that_is_silent_for_too_long_has_to_be_looked_at(
    written: WrittenRun, iterations: int, bound: int
) -> None:
    verdict = _silent(written, bound - 1, iterations=iterations)
    assert (verdict.state, verdict.todo) == ("running", "nothing: wait; to stop: scancel 42")
    verdict = written.status(1000 + bound + 1, slurm(("42", "RUNNING"))).verdict
    log = written.run.attempts / "42-r0" / "logs" / "node01-driver.log"
    assert (verdict.state, verdict.todo) == ("running", f"look at {log}; to stop: scancel 42")
    assert verdict.commands == ("scancel 42",)
    assert verdict.why.endswith(f"; no sign of attempt 42-r0 for {bound // 60} min")


def test_iterations_of_a_minute_may_be_silent_for_half_an_hour_and_loading_for_one(written: WrittenRun) -> None:
    attempt = written.attempt("42-r0", 0)
    written.submitted(("train", "42"))
    written.iteration(0, attempt, 1000, 60)
    for what, bound in (("update", 1800), ("loading", 3600)):
        attempt.progress.write_text(json.dumps({"what": what, "now": BEGAN + 1000}), encoding="utf-8")
        assert written.status(999 + bound, slurm(("42", "RUNNING"))).verdict.todo.startswith("nothing")
        assert written.status(1001 + bound, slurm(("42", "RUNNING"))).verdict.todo.startswith("look at ")


def test_what_the_canary_says_is_a_sign(written: WrittenRun) -> None:
    _silent(written, 0)
    canary = written.run.attempt("42", 0).canary
    canary.root.mkdir()
    canary.progress.write_text(json.dumps({"what": "sampling", "now": BEGAN + 4000}), encoding="utf-8")
    status = written.status(5000, slurm(("42", "RUNNING")))
    assert status.silence is not None
    assert status.silence.seconds == 1000


def test_silence_of_an_attempt_whose_job_is_not_the_one_that_runs_is_no_matter(written: WrittenRun) -> None:
    written.submitted(("cast", "40"), ("train", "42"))
    written.attempt("42-r0", 0)
    verdict = written.status(9999, slurm(("40", "RUNNING"), ("42", "PENDING", "Dependency"))).verdict
    assert verdict.todo == "nothing: wait; to stop: scancel 40 42"


def test_what_stops_a_chain_names_the_jobs_that_would_follow_and_no_ended_one(written: WrittenRun) -> None:
    written.submitted(("train", "42"), ("train", "43"), ("train", "44"))
    written.end(written.attempt("42-r0", 10), 50, "preempted", "requeue")
    written.attempt("43-r0", 60)
    seen = slurm(("42", "CANCELLED"), ("43", "RUNNING"), ("44", "PENDING", "Dependency"))
    for look_at in (seen, no_slurm):
        assert written.status(70, look_at).verdict.commands == ("scancel 43 44",)


def test_what_stops_a_run_on_this_host_is_its_pid_and_an_mpirun_has_no_such_command(written: WrittenRun) -> None:
    record = {"cluster": "local", "host": socket.gethostname(), "pid": 1234, "stages": ["train"]}
    written.run.jobs.write_text(json.dumps(record), encoding="utf-8")
    verdict = written.status(60, lambda noted, ids: Queue(local_alive=True)).verdict
    assert (verdict.state, verdict.todo) == ("running", "nothing: wait; to stop: kill 1234")
    written.run.jobs.unlink()
    written.attempt("mpirun-r0", 10)
    verdict = written.status(60, no_slurm).verdict
    assert (verdict.state, verdict.todo, verdict.commands) == ("running", "nothing: wait", ())


def test_what_goes_on_is_the_command_that_was_given_in_its_own_directory(written: WrittenRun) -> None:
    run = json.loads(written.run.run.read_text(encoding="utf-8"))
    run |= {"command": ["configs/r1.yaml", "--site", "h100", "--set", "run.root=my runs"], "cwd": os.getcwd()}
    written.run.run.write_text(json.dumps(run), encoding="utf-8")
    command = "python -m r1hpc.submit configs/r1.yaml --site h100 --set 'run.root=my runs'"
    assert written.status(5, slurm()).verdict.todo == command
    written.run.run.write_text(json.dumps(run | {"cwd": "/the checkout"}), encoding="utf-8")
    assert written.status(5, slurm()).verdict.commands == (f"cd '/the checkout' && {command}",)


def test_requeued_and_waiting(written: WrittenRun) -> None:
    written.submitted(("train", "42"))
    written.end(written.attempt("42-r0", 10), 50, "preempted", "requeue", "the job was asked to stop")
    verdict = written.status(60, slurm(("42", "PENDING", "Resources"))).verdict
    assert verdict.state == "waiting"
    assert verdict.why == ("attempt 42-r0 ended: preempted (the job was asked to stop); train 42: PENDING (Resources)")


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("PENDING", "JobHeldUser"),
        ("PENDING", "job_requeued_in_held_state"),
        ("REQUEUE_HOLD", "None"),
        ("PENDING", "launch_failed_requeued_held"),
    ],
)
def test_held_with_the_command_that_releases_it(written: WrittenRun, state: str, reason: str) -> None:
    written.submitted(("train", "42"))
    written.end(written.attempt("42-r0", 10), 50, "crash", "hold", "3 attempts without progress ended so")
    verdict = written.status(60, slurm(("42", state, reason))).verdict
    assert (verdict.state, verdict.todo) == ("held", "mend it, then scontrol release 42")
    assert verdict.why == "train 42: 3 attempts without progress ended so"


def test_held_in_a_chain(written: WrittenRun) -> None:
    written.submitted(("train", "42"), ("train", "43"))
    written.run.hold.write_text(json.dumps({"reason": "a node failed"}), encoding="utf-8")
    verdict = written.status(60, slurm(("43", "PENDING", "Dependency"))).verdict
    assert (verdict.state, verdict.why) == ("held", "HOLD: a node failed")
    assert "python -m r1hpc.submit" in verdict.todo


def test_a_chain_goes_on_behind_a_preempted_job(written: WrittenRun) -> None:
    written.submitted(("train", "42"), ("train", "43"))
    written.end(written.attempt("42-r0", 10), 50, "preempted", "requeue")
    written.attempt("43-r0", 60)
    status = written.status(70, slurm(("42", "PREEMPTED"), ("43", "RUNNING")))
    assert (status.verdict.state, status.verdict.why) == ("running", "train 43: RUNNING on node[01-02]")
    assert status.stages[-1].job_id == "43"


def test_done(written: WrittenRun) -> None:
    written.submitted(*ALL)
    written.converted()
    written.end(written.attempt("42-r0", 10), 50, "done", "exit")
    written.run.done.touch()
    status = written.status(60, no_slurm)
    assert (status.verdict.state, status.verdict.certain) == ("done", True)
    assert status.verdict.todo == f"python -m r1hpc.metrics {written.run.root}"
    assert [stage.state for stage in status.stages] == ["complete"] * 3


def test_stages_that_were_submitted_alone_are_done_when_complete(written: WrittenRun) -> None:
    written.submitted(("cast", "40"), ("convert", "41"))
    written.converted()
    assert written.status(60, slurm()).verdict.state == "done"


def test_cancelled(written: WrittenRun) -> None:
    written.submitted(("train", "42"))
    written.end(written.attempt("42-r0", 10), 50, "cancelled", "exit", "the job is COMPLETING, not RUNNING")
    assert written.status(60, slurm(("42", "CANCELLED"))).verdict.state == "cancelled"
    assert written.status(9000, slurm()).verdict.state == "cancelled"


def test_failed(written: WrittenRun) -> None:
    written.submitted(("train", "42"))
    written.end(written.attempt("42-r0", 10), 50, "invalid", "exit", "the configuration is wrong")
    assert written.status(60, slurm(("42", "FAILED"))).verdict.why == "train 42: FAILED"
    verdict = written.status(9000, slurm()).verdict
    assert (verdict.state, verdict.why) == ("failed", "attempt 42-r0 ended: invalid (the configuration is wrong)")


def test_what_the_attempt_itself_said_is_told_with_the_decision(written: WrittenRun) -> None:
    written.submitted(("train", "42"))
    said = "the canary failed in sampling: engine 1 on node02 gave up"
    written.end(written.attempt("42-r0", 10), 50, "canary", "exit", "a person has to look first", said)
    verdict = written.status(9000, slurm()).verdict
    assert verdict.why == f"attempt 42-r0 ended: canary (a person has to look first; {said})"


class Hiding(SlurmClient):
    """A Slurm that shows a user's jobs to that user alone, and job 42 to root's eyes."""

    def __init__(self, shown: str = "") -> None:
        super().__init__()
        self.shown, self.asked = shown, [""]

    def present(self) -> bool:
        return True

    def call(self, *argv: str, timeout_s: float | None = None) -> str:
        self.asked = list(argv)
        return self.shown


def test_jobs_are_asked_for_as_the_owners_and_what_slurm_hides_is_not_taken_for_lost(written: WrittenRun) -> None:
    written.submitted(("train", "42"))
    written.attempt("42-r0", 10)
    mine = written.status(60, lambda noted, ids: ask(ids, noted.owner, Hiding()))
    assert (mine.verdict.state, mine.verdict.certain) == ("lost", True)
    other, hiding = os.getuid() + 4321, Hiding()
    verdict = written.status(60, lambda noted, ids: ask(ids, other, hiding)).verdict
    assert (verdict.state, verdict.certain) == ("running", False)
    assert f"but they are user {other}'s: it may hide them" in verdict.why
    assert hiding.asked[1:3] == ["-u", str(other)]
    shown = "\x1f".join(("42", "N/A", "RUNNING", "None", "node01")) + "\n"
    verdict = written.status(60, lambda noted, ids: ask(ids, other, Hiding(shown))).verdict
    assert (verdict.state, verdict.certain) == ("running", True)


@pytest.mark.parametrize("action", ["requeue", "hold"])
def test_a_requeue_that_was_decided_and_never_came(written: WrittenRun, action: str) -> None:
    written.submitted(("train", "42"))
    written.end(written.attempt("42-r0", 10), 50, "preempted", action)
    verdict = written.status(9000, slurm()).verdict
    assert verdict.state == "lost"
    assert verdict.why == f"attempt 42-r0: its record says {action}, and Slurm has not got job 42"


def test_an_attempt_that_vanished_with_its_job(written: WrittenRun) -> None:
    written.submitted(("train", "42"))
    written.attempt("42-r0", 10)
    verdict = written.status(9000, slurm()).verdict
    assert (verdict.state, verdict.why) == (
        "lost",
        "attempt 42-r0: its end was not recorded, and Slurm has not got job 42",
    )


@pytest.mark.parametrize(
    ("cause", "action", "state"),
    [
        (None, None, "running"),
        ("preempted", "requeue", "waiting"),
        ("requeued_by_slurm", "exit", "waiting"),
        ("crash", "hold", "held"),
        ("invalid", "exit", "failed"),
        ("cancelled", "exit", "cancelled"),
    ],
)
def test_without_slurm_files_are_believed_and_it_is_said(
    written: WrittenRun, cause: str | None, action: str | None, state: str
) -> None:
    written.submitted(("train", "42"))
    attempt = written.attempt("42-r0", 10)
    if cause is not None and action is not None:
        written.end(attempt, 50, cause, action)
    verdict = written.status(60, no_slurm).verdict
    assert (verdict.state, verdict.certain) == (state, False)
    assert verdict.why.endswith("(by its files: no Slurm on this host)")


def test_what_was_before_the_last_submit_counts_no_more(written: WrittenRun) -> None:
    written.submitted(("train", "42"))
    written.end(written.attempt("30-r0", -5000), -4000, "invalid", "exit")
    status = written.status(60, no_slurm)
    assert status.verdict.state == "waiting"
    assert [attempt.name for attempt in status.attempts] == ["30-r0"]


def test_a_job_that_was_submitted_by_hand_is_asked_for(written: WrittenRun) -> None:
    written.attempt("77-r0", 10)
    status = written.status(60, slurm(("77", "RUNNING"), ("78", "PENDING", "JobHeldUser")))
    assert (status.verdict.state, status.verdict.why) == ("running", "train 77: RUNNING on node[01-02]")


def test_an_element_of_a_sweep_that_is_queued_waits_with_its_array(written: WrittenRun) -> None:
    run = json.loads(written.run.run.read_text(encoding="utf-8"))
    written.run.run.write_text(json.dumps(run | {"sweep_of": "base-bbbbbb"}), encoding="utf-8")
    unknown = written.status(60, slurm()).verdict
    assert (unknown.state, unknown.certain) == ("waiting", False)
    base = RunDir(written.run.root.parent / "base")
    base.root.mkdir()
    base.run.write_text(json.dumps({"run_id": "base-bbbbbb"}), encoding="utf-8")
    base.sweep_index.write_text(f"{base.root.parent}/other\n{written.run.root}\n", encoding="utf-8")
    jobs = [{"stage": "convert", "job_id": "76", "num_tasks": 4}, {"stage": "train", "job_id": "77", "num_tasks": 2}]
    base.jobs.write_text(json.dumps({"cluster": "slurm", "jobs": jobs}), encoding="utf-8")
    array = [JobElement("77", 0, "RUNNING", "None", "node03"), JobElement("77", 1, "PENDING", "Resources", "")]
    verdict = written.status(60, lambda noted, ids: grouped(array, ids)).verdict
    assert (verdict.state, verdict.why, verdict.certain) == ("waiting", "train 77_1: PENDING (Resources)", True)


def test_an_element_of_a_sweep_is_told_from_the_others_of_its_array(written: WrittenRun) -> None:
    written.attempt("77_1-r0", 10)
    array = [JobElement("77", 0, "RUNNING", "None", "node03"), JobElement("77", 1, "PENDING", "JobHeldUser", "")]
    verdict = written.status(60, lambda noted, ids: grouped(array, ids)).verdict
    assert (verdict.state, verdict.todo) == ("held", "mend it, then scontrol release 77_1")


@pytest.mark.parametrize(
    ("exit_record", "state"), [(None, "lost"), ({"exit_code": 0, "reason": ""}, "done"), ({"exit_code": 1}, "failed")]
)
def test_without_slurm_at_all_the_process_is_looked_for(
    written: WrittenRun, exit_record: dict[str, object] | None, state: str
) -> None:
    """No process carries this run's mark."""
    record = {"cluster": "local", "host": socket.gethostname(), "pid": 1, "stages": ["train"]}
    written.run.jobs.write_text(json.dumps(record), encoding="utf-8")
    if exit_record is not None:
        (written.run.logs / "local.json").write_text(json.dumps(exit_record), encoding="utf-8")
    assert written.status(60, look).verdict.state == state


def test_a_local_run_of_another_host_is_that_hosts_matter(written: WrittenRun) -> None:
    record = {"cluster": "local", "host": "elsewhere", "pid": 1, "stages": ["train"]}
    written.run.jobs.write_text(json.dumps(record), encoding="utf-8")
    verdict = written.status(60, look).verdict
    assert (verdict.state, verdict.certain) == ("running", False)
    assert "it was started on host elsewhere" in verdict.why
