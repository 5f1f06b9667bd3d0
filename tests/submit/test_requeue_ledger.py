"""The ledger on disk: what counts, what an attempt without an end is taken for."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1hpc.cluster.outcome import Outcome, record_progress, write_outcome
from r1hpc.cluster.requeue import EXIT, REQUEUE, Decision, Past
from r1hpc.cluster.requeue.files import publish
from r1hpc.cluster.requeue.ledger import close_record, made_progress, past_attempts, unfinished
from r1hpc.rundir import AttemptDir

HOME = Path(__file__).resolve().parents[2]
CRASH = Decision(REQUEUE, "crash", "the attempt failed")


def _attempt(run: Path, name: str, **outcome: object) -> Path:
    attempt = run / "attempts" / name
    attempt.mkdir(parents=True)
    (attempt / "begin.json").write_text(json.dumps({"job_id": "7", "restart": 0, "nodes": []}), encoding="utf-8")
    if outcome:
        (attempt / "outcome.json").write_text(json.dumps(outcome), encoding="utf-8")
    return attempt


def _submitted(run: Path, when: float) -> None:
    (run / "run.json").write_text(
        json.dumps({"run_id": "x-1", "submitted": when, "max_crashes": 3, "restart": "requeue"}), encoding="utf-8"
    )


def test_attempts_before_the_last_submit_no_longer_count(tmp_path: Path) -> None:
    old, new = _attempt(tmp_path, "7-r0"), _attempt(tmp_path, "8-r0", lost_nodes=["node02"], reason="x")
    record_progress(AttemptDir(new), 20)
    close_record(str(old), 1, CRASH)
    between = math.nextafter(json.loads((old / "end.json").read_text(encoding="utf-8"))["ended"], math.inf)
    _submitted(tmp_path, between)
    close_record(str(new), 78, CRASH._replace(cause="node_lost"))
    assert past_attempts(str(tmp_path), "") == (Past("node_lost", True, ("node02",)),)
    _submitted(tmp_path, 0.0)
    assert [past.cause for past in past_attempts(str(tmp_path), "")] == ["crash", "node_lost"]
    assert [past.cause for past in past_attempts(str(tmp_path), str(new))] == ["crash"]


def test_begin_without_slurm_commands_still_opens_the_record_and_closes_abandoned_ones(tmp_path: Path) -> None:
    abandoned = _attempt(tmp_path, "41_3-r0")
    _submitted(tmp_path, 0.0)
    environment = {
        "PATH": str(tmp_path),  # no scontrol, no squeue
        "SLURM_JOB_ID": "41",
        "SLURM_ARRAY_JOB_ID": "41",
        "SLURM_ARRAY_TASK_ID": "5",
        "SLURM_RESTART_COUNT": "2",
        "SLURM_JOB_NODELIST": "node[01-02]",
    }
    command = [sys.executable, str(HOME / "jobs" / "requeue.py"), "begin", str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    attempt = tmp_path / "attempts" / "41_5-r2"
    assert done.stdout.splitlines() == [f"export R1HPC_ATTEMPT={attempt}", "export R1HPC_RUN=x-1"]
    begin = json.loads((attempt / "begin.json").read_text(encoding="utf-8"))
    assert (begin["job_id"], begin["restart"], begin["end_time"]) == ("41_5", 2, None)
    end = json.loads((abandoned / "end.json").read_text(encoding="utf-8"))
    assert (end["cause"], end["action"], end["exit_code"]) == ("abandoned", EXIT, -1)


@pytest.mark.parametrize(
    ("preempt_type", "sacctmgr", "grace_s"),
    [
        ("preempt/partition_prio", "echo 01:00:00", 120.0),
        ("preempt/qos", "echo 1-00:02:03", 86523.0),
        ("preempt/qos", "echo 00:00:00", 0.0),
        ("preempt/qos", "exit 1", 0.0),
    ],
)
def test_the_grace_is_that_of_the_qos_where_slurm_preempts_by_qos(
    tmp_path: Path, preempt_type: str, sacctmgr: str, grace_s: float
) -> None:
    _submitted(tmp_path, 0.0)
    answers = {
        "scontrol": f"""case "$2" in
            config) echo 'KillWait                = 30 sec'; echo 'PreemptType             = {preempt_type}' ;;
            job) echo 'JobId=7 QOS=low Partition=gpu Comment=r1hpc=x-1' ;;
            partition) echo 'PartitionName=gpu GraceTime=120' ;;
        esac""",
        "sacctmgr": f'[ "$*" = "-nP show qos low format=GraceTime" ] || exit 2; {sacctmgr}',
    }
    for name, text in answers.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node01"}
    command = [sys.executable, str(HOME / "jobs" / "requeue.py"), "begin", str(tmp_path)]
    subprocess.run(command, env=environment, capture_output=True, timeout=60, check=True)
    begin = json.loads((tmp_path / "attempts" / "7-r0" / "begin.json").read_text(encoding="utf-8"))
    assert (begin["grace_s"], begin["kill_wait_s"]) == (grace_s, 30.0)


def test_end_without_slurm_holds_and_says_that_it_cannot(tmp_path: Path) -> None:
    attempt = _attempt(tmp_path, "7-r0")
    _submitted(tmp_path, 0.0)
    command = [sys.executable, str(HOME / "jobs" / "requeue.py"), "end", str(tmp_path), str(attempt), "1"]
    done = subprocess.run(command, env={"PATH": os.devnull}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "hold (Slurm does not say in what state the job is)" in done.stdout
    assert json.loads((attempt / "end.json").read_text(encoding="utf-8"))["action"] == "hold"


FAKE_SCONTROL = """#!/bin/sh
echo "$*" >> {folder}/calls
case $1 in
  show) echo "JobId=7 JobState=$(cat {folder}/state) Restarts=$(cat {folder}/restarts) ExcNodeList=(null)" ;;
  requeue)
    [ -e {folder}/cancelled-meanwhile ] && echo COMPLETING > {folder}/state && exit 1
    [ -e {folder}/kill-before ] && rm {folder}/kill-before && kill -9 $PPID && exit 0
    echo 1 > {folder}/restarts
    [ -e {folder}/kill-after ] && rm {folder}/kill-after && kill -9 $PPID ;;
esac
exit 0
"""
"""A controller that knows one job. It kills who asks for the requeue, before or after it has heard; or fails while
somebody cancels the job."""


class Ending:
    """The end of an attempt against FAKE_SCONTROL."""

    def __init__(self, run: Path) -> None:
        self.run, self.attempt = run, _attempt(run, "7-r0", lost_nodes=[], reason="the engine fell over")
        (self.attempt / "begin.json").write_text(json.dumps({"job_id": "7", "restart": 0, "started": 1.0, "nodes": []}))
        _submitted(run, 0.0)
        self.bin = run / "bin"
        self.bin.mkdir()
        (self.bin / "restarts").write_text("0")
        (self.bin / "state").write_text("RUNNING")
        scontrol = self.bin / "scontrol"
        scontrol.write_text(FAKE_SCONTROL.format(folder=self.bin))
        scontrol.chmod(0o755)

    def __call__(self) -> int:
        command = [sys.executable, str(HOME / "jobs" / "requeue.py"), "end", str(self.run), str(self.attempt), "1"]
        path = f"{self.bin}:/usr/bin:/bin"
        return subprocess.run(command, env={"PATH": path}, capture_output=True, timeout=60, check=False).returncode

    @property
    def record(self) -> dict[str, object]:
        record: dict[str, object] = json.loads((self.attempt / "end.json").read_text(encoding="utf-8"))
        return record

    @property
    def requeues(self) -> int:
        return (self.bin / "calls").read_text(encoding="utf-8").splitlines().count("requeue 7")


@pytest.mark.parametrize(("moment", "requeues"), [("kill-before", 2), ("kill-after", 1)])
def test_killed_at_its_requeue_the_end_of_an_attempt_can_be_run_again(
    tmp_path: Path, moment: str, requeues: int
) -> None:
    end = Ending(tmp_path)
    (end.bin / moment).touch()
    assert end() == -9
    assert (end.record["action"], end.record["cause"], end.record["carried_out"]) == ("requeue", "crash", False)
    text = "attempt 7-r0 ended (crash: the attempt failed), and was cut off before its requeue was asked for"
    assert unfinished(str(tmp_path)) == text
    assert end() == 3
    assert (end.record["action"], end.record["cause"], end.record["carried_out"]) == ("requeue", "crash", True)
    assert (end.requeues, (end.bin / "restarts").read_text().strip()) == (requeues, "1")
    before = end.record
    assert (end(), end.record, end.requeues) == (3, before, requeues)  # nothing is left to be done
    assert unfinished(str(tmp_path)) is None


def test_a_job_that_is_cancelled_while_its_requeue_is_tried_again_stays_cancelled(tmp_path: Path) -> None:
    end = Ending(tmp_path)
    (end.bin / "cancelled-meanwhile").touch()
    assert end() == 0
    assert (end.record["action"], end.record["cause"], end.record["carried_out"]) == (EXIT, "cancelled", True)
    assert (end.requeues, (end.bin / "restarts").read_text().strip()) == (1, "0")
    assert (end(), end.requeues) == (0, 1)


def test_a_job_that_is_cancelled_before_the_end_is_run_again_stays_cancelled(tmp_path: Path) -> None:
    end = Ending(tmp_path)
    (end.bin / "kill-before").touch()
    assert end() == -9
    (end.bin / "state").write_text("COMPLETING")
    assert end() == 0
    assert (end.record["action"], end.record["cause"], end.requeues) == (EXIT, "cancelled", 1)


def test_a_published_record_and_its_name_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, list[str]]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), sorted(os.listdir(tmp_path))))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    publish(str(tmp_path / "end.json"), {"action": "exit"})
    temporary = f"end.json.{os.getpid()}.tmp"
    assert synced == [(str(tmp_path / temporary), [temporary]), (str(tmp_path), ["end.json"])]


def test_an_attempt_without_an_end_is_told_to_who_looks_next_until_the_run_is_done(tmp_path: Path) -> None:
    assert unfinished(str(tmp_path)) is None
    first, second = _attempt(tmp_path, "8-r0"), _attempt(tmp_path, "7-r0")
    for started, attempt in ((1.0, first), (2.0, second)):
        (attempt / "begin.json").write_text(json.dumps({"job_id": "7", "restart": 0, "started": started}))
    close_record(str(first), 1, CRASH)  # an older one: whatever it left was made up for
    assert "attempt 7-r0 was cut off before its end was recorded" in (unfinished(str(tmp_path)) or "")
    close_record(str(second), 64, Decision(EXIT, "invalid", "trying again cannot help"))
    assert unfinished(str(tmp_path)) is None
    (second / "end.json").unlink()
    (tmp_path / "DONE").touch()
    assert unfinished(str(tmp_path)) is None


def test_progress_is_what_the_driver_recorded_whatever_the_agent_writes(tmp_path: Path) -> None:
    attempt = _attempt(tmp_path, "7-r0")
    assert not made_progress(str(attempt))
    record_progress(AttemptDir(attempt), 3)
    record_progress(AttemptDir(attempt), 5)
    write_outcome(attempt / "outcome.json", Outcome(75, "asked to stop"))
    assert made_progress(str(attempt))
    assert json.loads((attempt / "committed.json").read_text(encoding="utf-8"))["iteration"] == 5


def test_an_interrupted_attempt_blames_no_node(tmp_path: Path) -> None:
    attempt = _attempt(tmp_path, "7-r0", lost_nodes=["node02"], reason="silent")
    for action, cause in ((REQUEUE, "preempted"), (EXIT, "requeued_by_slurm")):
        close_record(str(attempt), 78, Decision(action, cause, "the job was asked to stop"))
        assert json.loads((attempt / "end.json").read_text(encoding="utf-8"))["blamed"] == []
    close_record(str(attempt), 78, Decision(REQUEUE, "node_lost", "a node was lost"))
    assert json.loads((attempt / "end.json").read_text(encoding="utf-8"))["blamed"] == ["node02"]
