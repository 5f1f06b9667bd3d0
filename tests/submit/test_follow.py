"""--wait: the verdict over what Slurm shows, what it has forgotten, and what the jobs left on disk."""

from __future__ import annotations

import json
import os
import pickle
import time
from pathlib import Path

import pytest

from r1hpc.cluster.slurm import JobElement, SlurmClient
from r1hpc.errors import SubmitError
from r1hpc.rundir import RunDir
from r1hpc.submit.follow import JobView, follow, next_views, poll_interval_s
from r1hpc.submit.pipeline import SubmittedJob

CONVERT = SubmittedJob("convert", "70", 3, 1000.0)


class Recorded(SlurmClient):
    """The answers of squeue, one after another; the last one stays."""

    def __init__(self, *answers: str) -> None:
        super().__init__()
        self._answers = list(answers)

    def call(self, *argv: str, timeout_s: float | None = None) -> str:
        assert argv[0] == "squeue"
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def _squeue(*rows: str) -> str:
    """As squeue 22.05 printed it for -o '%F|%K|%T|%r|%N', with the separator that is asked for."""
    return "".join(row.replace("|", "\x1f") + "\n" for row in rows)


def _states(job: SubmittedJob, directory: Path) -> tuple[str, ...]:
    """Of a job that Slurm has forgotten before it was ever seen."""
    return next_views([job], [], {}, RunDir(directory))[job.job_id].states


def _ended(run: Path, attempt: str, exit_code: int | None, ended: float = 2000.0, action: str = "exit") -> None:
    folder = run / "attempts" / attempt
    folder.mkdir(parents=True)
    if exit_code is not None:
        record = {"exit_code": exit_code, "ended": ended, "action": action, "cause": "done"}
        (folder / "end.json").write_text(json.dumps(record), encoding="utf-8")


def test_squeue_is_read_with_every_element_of_an_array_apart() -> None:
    text = _squeue(
        "55392113|1|FAILED|NonZeroExitCode|node02",
        "55392113|2|PENDING|JobArrayTaskLimit|",
        "55392114|N/A|PENDING|job requeued in held state|",
        "55392115|N/A|RUNNING|None|node[01-02]",
    )
    assert Recorded(text).elements_of(os.getuid()) == [
        JobElement("55392113", 1, "FAILED", "NonZeroExitCode", "node02"),
        JobElement("55392113", 2, "PENDING", "JobArrayTaskLimit", ""),
        JobElement("55392114", 0, "PENDING", "job requeued in held state", ""),
        JobElement("55392115", 0, "RUNNING", "None", "node[01-02]"),
    ]


def test_a_failed_element_that_slurm_has_forgotten_stays_failed(tmp_path: Path) -> None:
    answers = (
        _squeue("70|0|COMPLETED|None|n1", "70|1|FAILED|NonZeroExitCode|n2", "70|2|RUNNING|None|n1"),
        _squeue("70|2|COMPLETED|None|n1"),
    )
    lines: list[str] = []
    with pytest.raises(SubmitError, match=r"convert 70: 2 COMPLETED, 1 FAILED \(not completed: 70_\[1\]\)"):
        follow([CONVERT], RunDir(tmp_path), Recorded(*answers), lines.append)
    assert [line.partition("convert 70: ")[2] for line in lines] == [
        "1 COMPLETED, 1 FAILED, 1 RUNNING",
        "2 COMPLETED, 1 FAILED",
    ]


def test_an_array_is_complete_only_with_all_its_elements(tmp_path: Path) -> None:
    two_of_three = _squeue("70|0|COMPLETED|None|n1", "70|2|COMPLETED|None|n1")
    with pytest.raises(SubmitError, match="2 COMPLETED, 1 VANISHED"):
        follow([CONVERT], RunDir(tmp_path), Recorded(two_of_three), lambda line: None)


def test_an_element_that_runs_again_counts_as_it_is_now(tmp_path: Path) -> None:
    before = {"70": JobView(("COMPLETED", "NODE_FAIL", "COMPLETED"), "")}
    seen = [JobElement("70", 1, "PENDING", "BeginTime", "")]
    view = next_views([CONVERT], seen, before, RunDir(tmp_path))["70"]
    assert view.states == ("COMPLETED", "PENDING", "COMPLETED")
    assert not view.ended


def test_a_held_element_is_stuck_whatever_the_word_for_it(tmp_path: Path) -> None:
    for reason in ("JobHeldUser", "job requeued in held state", "JobHoldMaxRequeue", "launch failed requeued held"):
        seen = [JobElement("70", 1, "PENDING", reason, "")]
        assert next_views([CONVERT], seen, {}, RunDir(tmp_path))["70"].stuck == reason
    assert (
        next_views([CONVERT], [JobElement("70", 1, "PENDING", "Priority", "")], {}, RunDir(tmp_path))["70"].stuck
        is None
    )


def test_a_forgotten_train_job_ended_as_its_newest_attempt_did(tmp_path: Path) -> None:
    job = SubmittedJob("train", "71", 1, 1000.0)
    assert _states(job, tmp_path) == ("VANISHED",)
    _ended(tmp_path, "71-r2", 1, action="requeue")
    assert _states(job, tmp_path) == ("VANISHED",)
    _ended(tmp_path, "71-r9", 1)
    assert _states(job, tmp_path) == ("FAILED",)
    _ended(tmp_path, "71-r10", 0)
    assert _states(job, tmp_path) == ("COMPLETED",)
    _ended(tmp_path, "71-r11", None)  # cut off: Slurm killed the batch script, or its host died
    assert _states(job, tmp_path) == ("VANISHED",)


def test_an_attempt_of_an_earlier_slurm_with_the_same_job_id_proves_nothing(tmp_path: Path) -> None:
    _ended(tmp_path, "71-r0", 0, ended=500.0)
    assert _states(SubmittedJob("preflight", "71", 1, 1000.0), tmp_path) == ("VANISHED",)
    assert _states(SubmittedJob("preflight", "71", 1, 400.0), tmp_path) == ("COMPLETED",)


def test_forgotten_elements_of_a_sweep_are_looked_up_in_their_own_run_directories(tmp_path: Path) -> None:
    base, runs = tmp_path / "base", [tmp_path / "a", tmp_path / "b"]
    base.mkdir()
    (base / "sweep.txt").write_text("".join(f"{run}\n" for run in runs), encoding="utf-8")
    _ended(runs[0], "72_0-r0", 0)
    _ended(runs[1], "72_1-r0", 1)
    assert _states(SubmittedJob("train", "72", 2, 1000.0), base) == ("COMPLETED", "FAILED")


def test_forgotten_elements_of_an_array_ended_as_their_results_say(tmp_path: Path) -> None:
    job = SubmittedJob("convert", "70", 3, 1000.0, str(tmp_path))
    (tmp_path / "70_0_0_result.pkl").write_bytes(pickle.dumps(("success", None)))
    (tmp_path / "70_1_0_result.pkl").write_bytes(pickle.dumps(("error", "Traceback")))
    assert _states(job, tmp_path) == ("COMPLETED", "FAILED", "VANISHED")
    single = SubmittedJob("cast", "73", 1, 1000.0, str(tmp_path))
    (tmp_path / "73_0_result.pkl").write_bytes(pickle.dumps(("success", None)))
    assert _states(single, tmp_path) == ("COMPLETED",)


def test_a_job_that_vanished_is_an_error_that_says_so(tmp_path: Path) -> None:
    job = SubmittedJob("train", "74", 1, time.time())
    with pytest.raises(SubmitError, match="Slurm no longer knows the job, and it left no record of its end"):
        follow([job], RunDir(tmp_path), Recorded(""), lambda line: None)


def test_done_excuses_a_preempted_train_job_but_no_other_stage(tmp_path: Path) -> None:
    (tmp_path / "DONE").touch()
    follow([SubmittedJob("train", "75", 1, 0.0)], RunDir(tmp_path), Recorded(_squeue("75|N/A|CANCELLED|None|")), print)
    with pytest.raises(SubmitError, match="preflight 76: FAILED"):
        failed = _squeue("76|N/A|FAILED|NonZeroExitCode|n1")
        follow([SubmittedJob("preflight", "76", 1, 0.0)], RunDir(tmp_path), Recorded(failed), print)


def test_slurm_is_asked_every_second_at_first_and_twice_a_minute_later() -> None:
    assert [poll_interval_s(elapsed) for elapsed in (0, 10, 60, 300, 86400)] == [1.0, 1.0, 6.0, 30.0, 30.0]
