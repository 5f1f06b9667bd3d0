"""The ledger on disk: what counts, what an attempt without an end is taken for."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

from jobs.requeue import close_record, ledger
from r1hpc.cluster.requeue import EXIT, REQUEUE, Decision, Past

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
    old, new = _attempt(tmp_path, "7-r0"), _attempt(tmp_path, "8-r0", lost_nodes=["node02"], progress=True, reason="x")
    close_record(str(old), 1, CRASH)
    between = math.nextafter(json.loads((old / "end.json").read_text(encoding="utf-8"))["ended"], math.inf)
    _submitted(tmp_path, between)
    close_record(str(new), 78, CRASH._replace(cause="node_lost"))
    assert ledger(str(tmp_path), "") == (Past("node_lost", True, ("node02",)),)
    _submitted(tmp_path, 0.0)
    assert [past.cause for past in ledger(str(tmp_path), "")] == ["crash", "node_lost"]
    assert [past.cause for past in ledger(str(tmp_path), str(new))] == ["crash"]


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


def test_end_without_slurm_holds_and_says_that_it_cannot(tmp_path: Path) -> None:
    attempt = _attempt(tmp_path, "7-r0")
    _submitted(tmp_path, 0.0)
    command = [sys.executable, str(HOME / "jobs" / "requeue.py"), "end", str(tmp_path), str(attempt), "1"]
    done = subprocess.run(command, env={"PATH": os.devnull}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "hold (Slurm does not say in what state the job is)" in done.stdout
    assert json.loads((attempt / "end.json").read_text(encoding="utf-8"))["action"] == "hold"
