"""The requeue decision as a table, and the rules of the batch host's Python."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

import pytest

from r1hpc import exit_codes
from r1hpc.cluster.requeue import EXIT, HOLD, REQUEUE, Facts, Past, decide, parse_job, parse_nodes

HOME = Path(__file__).resolve().parents[2]

FACTS = Facts(
    exit_code=exit_codes.CRASHED,
    done=False,
    restart=0,
    job_state="RUNNING",
    restarts_now=0,
    seconds_left=7200.0,
    lead_s=600.0,
    progress=False,
    blamed=(),
    past=(),
    max_crashes=3,
)
CRASH = Past("crash", False)
PREEMPTED = Past("preempted", False)
PREEMPTED_WITH_PROGRESS = Past("preempted", True)


@pytest.mark.parametrize(
    ("changes", "action", "cause"),
    [
        ({"exit_code": 0}, EXIT, "done"),
        ({"done": True}, EXIT, "done"),
        ({}, REQUEUE, "crash"),
        ({"exit_code": exit_codes.STOP_REQUESTED}, REQUEUE, "preempted"),
        ({"exit_code": exit_codes.STOP_REQUESTED, "seconds_left": 500.0}, REQUEUE, "walltime"),
        ({"exit_code": 143, "seconds_left": -3.0}, REQUEUE, "walltime"),
        ({"exit_code": 138}, REQUEUE, "preempted"),
        ({"exit_code": 143}, REQUEUE, "preempted"),
        ({"exit_code": exit_codes.SRUN_LAUNCH_FAILED}, REQUEUE, "launch_failed"),
        ({"exit_code": exit_codes.NODE_LOST}, REQUEUE, "node_lost"),
        ({"exit_code": exit_codes.BRING_UP_FAILED}, REQUEUE, "bring_up_failed"),
        ({"exit_code": exit_codes.PREFLIGHT_FAILED}, REQUEUE, "bad_node"),
        ({"exit_code": exit_codes.INVALID}, EXIT, "invalid"),
        # scancel shows as COMPLETING: never requeued, whatever the agents say.
        ({"job_state": "COMPLETING", "exit_code": exit_codes.STOP_REQUESTED}, EXIT, "cancelled"),
        ({"job_state": "CANCELLED", "exit_code": exit_codes.NODE_LOST}, EXIT, "cancelled"),
        # but a proven time limit or launch failure is not a cancellation.
        ({"job_state": "COMPLETING", "seconds_left": -1.0}, REQUEUE, "walltime"),
        # Near the limit is not past it: a scancel in the last minutes stays a scancel.
        ({"job_state": "COMPLETING", "seconds_left": 10.0}, EXIT, "cancelled"),
        ({"job_state": "COMPLETING", "exit_code": exit_codes.SRUN_LAUNCH_FAILED}, REQUEUE, "launch_failed"),
        # Slurm was quicker.
        ({"restarts_now": 1, "exit_code": exit_codes.STOP_REQUESTED}, EXIT, "requeued_by_slurm"),
        ({"job_state": "UNKNOWN"}, HOLD, "crash"),
        # Three attempts of one kind without progress, this one included.
        ({"past": (CRASH,)}, REQUEUE, "crash"),
        ({"past": (CRASH, CRASH)}, HOLD, "crash"),
        ({"past": (CRASH, CRASH, PREEMPTED_WITH_PROGRESS, CRASH)}, REQUEUE, "crash"),
        ({"past": (CRASH, CRASH), "progress": True}, REQUEUE, "crash"),
        # Each kind has its own budget.
        ({"past": (PREEMPTED, PREEMPTED), "exit_code": exit_codes.NODE_LOST}, REQUEUE, "node_lost"),
        ({"past": (PREEMPTED, CRASH, PREEMPTED), "exit_code": exit_codes.STOP_REQUESTED}, HOLD, "preempted"),
        ({"past": (CRASH, PREEMPTED, CRASH)}, HOLD, "crash"),
        ({"past": (PREEMPTED_WITH_PROGRESS,) * 50, "exit_code": exit_codes.STOP_REQUESTED}, REQUEUE, "preempted"),
    ],
)
def test_decision(changes: dict[str, Any], action: str, cause: str) -> None:
    decision = decide(FACTS._replace(**changes))
    assert (decision.action, decision.cause) == (action, cause)


def test_a_node_that_failed_preflight_is_excluded_at_once() -> None:
    decision = decide(FACTS._replace(exit_code=exit_codes.PREFLIGHT_FAILED, blamed=("node07",)))
    assert decision.exclude == ("node07",)


def test_a_node_blamed_for_a_loss_is_excluded_the_second_time() -> None:
    lost = FACTS._replace(exit_code=exit_codes.NODE_LOST, blamed=("node07", "node09"))
    assert decide(lost).exclude == ()
    assert decide(lost._replace(past=(Past("node_lost", True, ("node07",)),))).exclude == ("node07",)


def test_the_reason_of_a_hold_shows_the_arithmetic() -> None:
    decision = decide(FACTS._replace(past=(CRASH, CRASH)))
    assert decision.reason == (
        "3 attempts without progress ended so, the last one: the attempt failed (run.max_crashes = 3)"
    )


def test_scontrol_records_are_read_with_the_first_of_each_key() -> None:
    line = "JobId=7 JobName=a=b JobState=RUNNING Reason=None Restarts=2 ExcNodeList=node[03-04] JobState=X"
    assert parse_job(line)["JobState"] == "RUNNING"
    assert parse_job(line)["JobName"] == "a=b"
    text = "NodeName=n2 Arch=x86_64 NodeAddr=127.0.0.12 NodeHostName=h\nNodeName=n1 NodeAddr=127.0.0.11\n\n"
    assert parse_nodes(text) == [{"name": "n2", "address": "127.0.0.12"}, {"name": "n1", "address": "127.0.0.11"}]


def _batch_host_files() -> list[Path]:
    names = ["jobs/requeue.py", "r1hpc/cluster/requeue.py", "r1hpc/exit_codes.py"]
    return [HOME / name for name in [*names, "r1hpc/__init__.py", "r1hpc/cluster/__init__.py", "jobs/__init__.py"]]


@pytest.mark.parametrize("path", _batch_host_files(), ids=lambda path: path.name)
def test_batch_host_code_is_python_3_6_and_standard_library_only(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 6))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
            # `from __future__ import annotations` is 3.7.
            assert node.module != "__future__"
        else:
            continue
        for module in modules:
            top = module.partition(".")[0]
            assert top in sys.stdlib_module_names or module.startswith("r1hpc"), module
            if module.startswith("r1hpc."):
                assert module in ("r1hpc.cluster.requeue", "r1hpc.exit_codes"), module
