"""The two ends of an attempt on a real Slurm: requeue away from a bad node, hold, cancel, done."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from r1hpc.cluster.requeue import parse_job
from r1hpc.cluster.requeue.ledger import unfinished
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.submit.parameters import HOME

pytestmark = pytest.mark.slurm

SCRIPT = """#!/bin/bash
#SBATCH --nodes={nodes} --ntasks-per-node=1 --requeue --open-mode=append --time=5
#SBATCH --output={run}/log
export R1HPC_RUN_DIR={run} R1HPC_HOME={home} R1HPC_PYTHON={python} PATH={run}/bin:$PATH
. {home}/sbatch/hooks.sh
r1hpc_begin
srun bash -c '{main}'
rc=$?
r1hpc_end $rc
exit $rc
"""


class Run:
    """A run directory, and jobs that carry out small scripts in it."""

    def __init__(self, cluster: RehearsalCluster, root: Path) -> None:
        self.cluster, self.root = cluster, root

    def settings(self, **changes: object) -> None:
        """Write run.json."""
        record = {"run_id": "small-1", "submitted": 0.0, "max_crashes": 3, "restart": "requeue", "num_nodes": 1}
        (self.root / "run.json").write_text(json.dumps(record | changes), encoding="utf-8")

    def submit(self, main: str, nodes: int = 1, *options: str) -> str:
        """Submit the script; returns the job id."""
        path = self.root / "script.sh"
        text = SCRIPT.format(run=self.root, home=HOME, python=sys.executable, main=main, nodes=nodes)
        path.write_text(text, encoding="utf-8")
        return self.cluster.run(["sbatch", "--parsable", *options, str(path)], check=True).stdout.strip()

    def job(self, job_id: str) -> dict[str, str]:
        """What scontrol says of the job."""
        return parse_job(self.cluster.run(["scontrol", "show", "job", "-o", job_id], check=True).stdout)

    def wait_for(self, job_id: str, states: set[str], deadline_s: float = 60) -> dict[str, str]:
        """Wait until the job is in one of the states."""
        end = time.monotonic() + deadline_s
        while (job := self.job(job_id))["JobState"] not in states:
            assert time.monotonic() < end, f"{job['JobState']} after {deadline_s} s; {self.log}"
            time.sleep(0.2)
        return job

    def wait_until_held(self, job_id: str, deadline_s: float = 60) -> dict[str, str]:
        """Wait until the job is held and its script has said so, then take it out of the queue."""
        end = time.monotonic() + deadline_s
        while "held" not in (job := self.job(job_id))["Reason"].lower() or "held: " not in self.log:
            assert time.monotonic() < end, f"not held after {deadline_s} s; {self.log}"
            time.sleep(0.2)
        self.cluster.cancel(job_id)
        return job

    def end(self, attempt: str) -> dict[str, object]:
        """end.json of an attempt."""
        record: dict[str, object] = json.loads((self.root / "attempts" / attempt / "end.json").read_text())
        return record

    @property
    def log(self) -> str:
        """The job's output."""
        return (self.root / "log").read_text(encoding="utf-8")


@pytest.fixture
def run(slurm4: RehearsalCluster, request: pytest.FixtureRequest) -> Iterator[Run]:
    root = slurm4.shared_dir / request.node.name[:40]
    root.mkdir(parents=True)
    run = Run(slurm4, root)
    run.settings()
    yield run
    shutil.rmtree(root, ignore_errors=True)


BAD_FIRST_TIME = """
  echo $SLURMD_NODENAME >> $R1HPC_RUN_DIR/nodes
  [ "${SLURM_RESTART_COUNT:-0}" -ge 1 ] && exit 0
  echo "{\\"bad_nodes\\": [{\\"name\\": \\"$SLURMD_NODENAME\\"}]}" > $R1HPC_ATTEMPT/preflight.json
  exit 76
"""


def test_a_bad_node_is_excluded_and_the_job_runs_elsewhere(run: Run) -> None:
    job_id = run.submit(BAD_FIRST_TIME)
    job = run.wait_for(job_id, {"COMPLETED", "FAILED"})
    assert job["JobState"] == "COMPLETED", run.log
    first, second = (run.root / "nodes").read_text(encoding="utf-8").split()
    assert first != second
    assert (job["ExcNodeList"], job["Restarts"]) == (first, "1")
    assert (run.end(f"{job_id}-r0")["cause"], run.end(f"{job_id}-r1")["cause"]) == ("bad_node", "done")


def test_a_pinned_bad_node_is_replaced_by_the_hostfiles_spare(run: Run) -> None:
    run.settings(pinned=["node02", "node04"], num_nodes=1)
    job_id = run.submit(BAD_FIRST_TIME, 1, "--nodelist=node02")
    assert run.wait_for(job_id, {"COMPLETED", "FAILED"})["JobState"] == "COMPLETED", run.log
    assert (run.root / "nodes").read_text(encoding="utf-8").split() == ["node02", "node04"]


def test_without_a_spare_the_job_is_held_with_the_reason(run: Run) -> None:
    run.settings(pinned=["node02"], num_nodes=1)
    job_id = run.submit(BAD_FIRST_TIME, 1, "--nodelist=node02", "--exclude=node04")
    assert run.wait_until_held(job_id)["ExcNodeList"] == "node04"
    reason = "0 of the hostfile's 1 hosts are left, 1 are needed: a node failed the preflight; bad now: node02; "
    allow = f"excluded before: node04, allowed again by: scontrol update JobId={job_id} ExcNodeList="
    assert reason + allow in run.log
    assert run.end(f"{job_id}-r0")["reason"] == reason + allow


def test_crashes_without_progress_end_in_a_hold(run: Run) -> None:
    run.settings(max_crashes=2)
    job_id = run.submit("exit 9")
    run.wait_until_held(job_id)
    assert (run.end(f"{job_id}-r0")["action"], run.end(f"{job_id}-r1")["action"]) == ("requeue", "hold")
    assert "2 attempts without progress" in run.log


def test_a_cancelled_job_never_runs_again(run: Run) -> None:
    job_id = run.submit("trap exit\\ 75 TERM; touch $R1HPC_RUN_DIR/started; sleep 60 & wait")
    end = time.monotonic() + 30
    while not (run.root / "started").exists():
        assert time.monotonic() < end, run.log
        time.sleep(0.1)
    run.cluster.cancel(job_id)
    job = run.wait_for(job_id, {"CANCELLED"})
    assert job["Restarts"] == "0"
    time.sleep(2)
    assert run.job(job_id)["JobState"] == "CANCELLED"


def test_a_complete_run_leaves_at_once_and_opens_no_attempt(run: Run) -> None:
    (run.root / "DONE").touch()
    job_id = run.submit("touch $R1HPC_RUN_DIR/started")
    assert run.wait_for(job_id, {"COMPLETED", "FAILED"})["JobState"] == "COMPLETED"
    assert not (run.root / "started").exists()
    assert not (run.root / "attempts").exists()


def test_a_failed_attempt_of_a_chain_does_not_requeue_but_a_hold_stops_the_next(run: Run) -> None:
    run.settings(restart="chain", max_crashes=1)
    job_id = run.submit("exit 9")
    job = run.wait_for(job_id, {"COMPLETED", "FAILED"})
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "9:0")
    assert "1 attempts without progress" in (run.root / "HOLD").read_text(encoding="utf-8")
    job_id = run.submit("touch $R1HPC_RUN_DIR/started")
    assert run.wait_for(job_id, {"COMPLETED", "FAILED"})["JobState"] == "FAILED"
    assert not (run.root / "started").exists()


def test_a_pinned_node_that_is_lost_is_replaced_by_a_spare_at_once(run: Run) -> None:
    run.settings(pinned=["node02", "node04"], num_nodes=1)
    lost_first_time = """
      echo $SLURMD_NODENAME >> $R1HPC_RUN_DIR/nodes
      [ "${SLURM_RESTART_COUNT:-0}" -ge 1 ] && exit 0
      echo "{\\"lost_nodes\\": [\\"$SLURMD_NODENAME\\"], \\"reason\\": \\"silent\\"}" > $R1HPC_ATTEMPT/outcome.json
      exit 78
    """
    job_id = run.submit(lost_first_time, 1, "--nodelist=node02")
    job = run.wait_for(job_id, {"COMPLETED", "FAILED"})
    assert job["JobState"] == "COMPLETED", run.log
    assert (run.root / "nodes").read_text(encoding="utf-8").split() == ["node02", "node04"]
    assert job["ExcNodeList"] == "(null)"  # blamed once: avoided, not excluded


def test_a_threshold_that_no_node_meets_holds_the_job(run: Run) -> None:
    run.settings(num_nodes=4)
    every_node_bad = """
      [ "$SLURM_PROCID" = 0 ] || exit 0
      nodes=$(printf "{\\"name\\": \\"node0%s\\"}," 1 2 3 4)
      echo "{\\"bad_nodes\\": [${nodes%,}]}" > $R1HPC_ATTEMPT/preflight.json
      exit 76
    """
    job_id = run.submit(every_node_bad, 4)
    excluded = run.wait_until_held(job_id)["ExcNodeList"]
    reason = "0 of the partition's 4 nodes are left, 4 are needed: a node failed the preflight; bad now: node01, node02"
    assert reason in run.log
    assert excluded == "(null)", "released after mending, it would pend for ever"


def test_a_scancel_near_the_time_limit_is_a_cancel(run: Run) -> None:
    run.settings(signal_lead_s=1020)  # with --time=5 the whole job is near its limit
    job_id = run.submit("trap exit\\ 75 TERM; touch $R1HPC_RUN_DIR/started; sleep 60 & wait")
    end = time.monotonic() + 30
    while not (run.root / "started").exists():
        assert time.monotonic() < end, run.log
        time.sleep(0.1)
    run.cluster.cancel(job_id)
    run.wait_for(job_id, {"CANCELLED"})
    time.sleep(2)
    job = run.job(job_id)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0"), run.log


def test_set_e_in_a_sites_set_up_does_not_lose_the_teardown(run: Run) -> None:
    job_id = run.submit("exit 64")
    script = (run.root / "script.sh").read_text(encoding="utf-8")
    run.wait_for(job_id, {"FAILED"})
    path = run.root / "strict.sh"
    path.write_text(script.replace("export R1HPC_RUN_DIR", "set -euo pipefail\nexport R1HPC_RUN_DIR"), encoding="utf-8")
    job_id = run.cluster.run(["sbatch", "--parsable", str(path)], check=True).stdout.strip()
    run.wait_for(job_id, {"FAILED"})
    assert run.end(f"{job_id}-r0")["cause"] == "invalid"


def test_a_job_submitted_by_hand_is_marked_with_its_run(run: Run) -> None:
    job_id = run.submit("exit 0")
    assert run.wait_for(job_id, {"COMPLETED"})["Comment"] == "r1hpc=small-1"


def test_in_a_chain_a_bad_node_is_kept_from_the_follow_ups(run: Run) -> None:
    run.settings(restart="chain")
    later = run.submit("true", 1, "--begin=now+1hour")
    (run.root / "jobs.json").write_text(json.dumps({"jobs": [{"job_id": later}]}), encoding="utf-8")
    job_id = run.submit(BAD_FIRST_TIME)
    run.wait_for(job_id, {"FAILED"})
    bad = (run.root / "nodes").read_text(encoding="utf-8").split()[0]
    excluded = run.job(later)["ExcNodeList"]
    run.cluster.cancel(later)
    assert excluded == bad


KILLER = """#!/bin/bash
# scontrol, but who asks for the first requeue is killed before it is heard: $PPID asks, its parent is the batch script.
if [ "$1" = requeue ] && mkdir {run}/killed 2>/dev/null; then
  script=$(awk '{{print $4}}' /proc/$PPID/stat)
  kill -9 {victim}
  exit 1
fi
exec {scontrol} "$@"
"""


def _kill_at_the_requeue(run: Run, victim: str) -> None:
    scontrol = run.root / "bin" / "scontrol"
    scontrol.parent.mkdir()
    text = KILLER.format(run=run.root, victim=victim, scontrol=shutil.which("scontrol"))
    scontrol.write_text(text, encoding="utf-8")
    scontrol.chmod(0o755)


CRASH_FIRST_TIME = "[ ${SLURM_RESTART_COUNT:-0} -ge 1 ]"


def test_killed_between_the_decision_and_the_requeue_the_job_comes_back_all_the_same(run: Run) -> None:
    _kill_at_the_requeue(run, "$PPID")
    job_id = run.submit(CRASH_FIRST_TIME)
    assert run.wait_for(job_id, {"COMPLETED", "FAILED"})["JobState"] == "COMPLETED", run.log
    assert (run.root / "killed").exists()
    assert [run.end(f"{job_id}-r{restart}")["cause"] for restart in (0, 1)] == ["crash", "done"]
    assert run.end(f"{job_id}-r0")["carried_out"] is True


def test_when_the_whole_script_is_killed_before_its_requeue_who_looks_next_is_told(run: Run) -> None:
    _kill_at_the_requeue(run, "$script $PPID")
    job_id = run.submit(CRASH_FIRST_TIME)
    assert run.wait_for(job_id, {"COMPLETED", "FAILED"})["JobState"] == "FAILED", run.log
    text = unfinished(str(run.root))
    assert text == (
        f"attempt {job_id}-r0 ended (crash: the attempt failed), and was cut off before its requeue was asked for"
    )


def test_the_grace_and_the_kill_wait_of_the_jobs_own_partition_are_noted(run: Run) -> None:
    job_id = run.submit("exit 0")
    run.wait_for(job_id, {"COMPLETED"})
    begin = json.loads((run.root / "attempts" / f"{job_id}-r0" / "begin.json").read_text(encoding="utf-8"))
    assert (begin["grace_s"], begin["kill_wait_s"]) == (5.0, 3.0)  # QUICK of tests/conftest.py


def test_a_preempted_job_says_so_whatever_its_exit_code_and_blames_no_node(run: Run) -> None:
    crashes_when_asked = """
      [ "${SLURM_RESTART_COUNT:-0}" -ge 1 ] && exit 0
      echo "{\\"lost_nodes\\": [\\"$SLURMD_NODENAME\\"], \\"reason\\": \\"silent\\"}" > $R1HPC_ATTEMPT/outcome.json
      trap exit\\ 78 TERM; touch $R1HPC_RUN_DIR/started; sleep 60 & wait
    """
    job_id = run.submit(crashes_when_asked, 4, "--exclusive")
    end = time.monotonic() + 30
    while not (run.root / "started").exists():
        assert time.monotonic() < end, run.log
        time.sleep(0.1)
    run.cluster.run(["sbatch", "-p", "high", "-N4", "--exclusive", "--output=/dev/null", "--wrap=true"], check=True)
    assert run.wait_for(job_id, {"COMPLETED", "FAILED"})["JobState"] == "COMPLETED", run.log
    first = run.end(f"{job_id}-r0")
    assert (first["cause"], first["exit_code"], first["blamed"]) == ("preempted", 78, [])
    assert run.end(f"{job_id}-r1")["cause"] == "done"
