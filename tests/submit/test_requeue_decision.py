"""The requeue decision as a table, and the rules of the batch host's Python."""

from __future__ import annotations

import ast
import datetime
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest

from r1hpc import exit_codes
from r1hpc.cluster.requeue import EXIT, HOLD, REQUEUE, Facts, Past, decide, parse_job, parse_nodes
from r1hpc.cluster.requeue.texts import is_preempted, limit_of, seconds_of

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
    max_interruptions=5,
)
CRASH = Past("crash", False)
PREEMPTED = Past("preempted", False)
REQUEUED_BY_SLURM = Past("requeued_by_slurm", False)
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
        ({"exit_code": exit_codes.CANARY_FAILED}, EXIT, "canary"),
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
        ({"past": (PREEMPTED, CRASH, PREEMPTED), "exit_code": exit_codes.STOP_REQUESTED}, REQUEUE, "preempted"),
        # Five interruptions without progress, this one included, whoever put the job back.
        ({"past": (PREEMPTED,) * 3, "exit_code": exit_codes.STOP_REQUESTED}, REQUEUE, "preempted"),
        ({"past": (PREEMPTED,) * 4, "exit_code": exit_codes.STOP_REQUESTED}, HOLD, "preempted"),
        ({"past": (PREEMPTED,) * 4, "exit_code": exit_codes.STOP_REQUESTED, "preempted": True}, HOLD, "preempted"),
        ({"past": (REQUEUED_BY_SLURM,) * 4, "exit_code": exit_codes.OUT_OF_TIME}, HOLD, "walltime"),
        ({"past": (REQUEUED_BY_SLURM,) * 4}, REQUEUE, "crash"),
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
    decision = decide(FACTS._replace(past=(PREEMPTED,) * 4, exit_code=exit_codes.STOP_REQUESTED))
    assert decision.reason == (
        "5 attempts without progress ended so, the last one: the job was asked to stop (run.max_interruptions = 5)"
    )


def test_scontrol_records_are_read_with_the_first_of_each_key() -> None:
    line = "JobId=7 JobName=a=b JobState=RUNNING Reason=None Restarts=2 ExcNodeList=node[03-04] JobState=X"
    assert parse_job(line)["JobState"] == "RUNNING"
    assert parse_job(line)["JobName"] == "a=b"
    text = "NodeName=n2 Arch=x86_64 NodeAddr=127.0.0.12 NodeHostName=h\nNodeName=n1 NodeAddr=127.0.0.11\n\n"
    assert parse_nodes(text) == [{"name": "n2", "address": "127.0.0.12"}, {"name": "n1", "address": "127.0.0.11"}]


def _batch_host_files() -> list[Path]:
    packages = ["r1hpc/__init__.py", "r1hpc/cluster/__init__.py", "jobs/__init__.py"]
    parts = sorted((HOME / "r1hpc" / "cluster" / "requeue").glob("*.py"))
    assert len(parts) > 5
    return [HOME / name for name in ["jobs/requeue.py", "r1hpc/exit_codes.py", *packages]] + parts


@pytest.mark.parametrize("path", _batch_host_files(), ids=lambda path: f"{path.parent.name}/{path.name}")
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
                assert module == "r1hpc.exit_codes" or module.startswith("r1hpc.cluster.requeue"), module


STATES = ["RUNNING", "COMPLETING", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "PENDING", "UNKNOWN"]
STATES += ["COMPLETED", "FAILED", "OUT_OF_MEMORY", "DEADLINE", "SUSPENDED", "CONFIGURING", "REVOKED", "SPECIAL_EXIT"]
CODES = [0, 1, 64, 75, 76, 77, 78, 79, 137, 138, 143, 233, 255]
LEFT = [None, -1.0, 0.0, 1.0, 659.0, 661.0]
"""Seconds: unknown, passed, near, within the lead of 600 s and Slurm's slack of 60 s, and not."""
CAUSE_OF_CODE = {76: "bad_node", 77: "bring_up_failed", 78: "node_lost", 79: "walltime", 233: "launch_failed"}
STOPS = {75, 138, 143}


def _expected(code: int, state: str, left: float | None, preempted: bool) -> tuple[str, str]:
    """The table in docs/slurm.md, row by row, in another form than the code: the first that applies."""
    passed = left is not None and left <= 0
    warned = left is not None and left <= 660
    if code == 0:
        return EXIT, "done"
    if state == "PENDING":
        return EXIT, "requeued_by_slurm"
    if code == 64:
        return EXIT, "invalid"
    if code == 76:
        cause = "bad_node"
    elif preempted:
        cause = "preempted"
    elif code in CAUSE_OF_CODE:
        cause = CAUSE_OF_CODE[code]
    elif code in STOPS:
        cause = "walltime" if warned else "preempted"
    else:
        cause = "walltime" if passed else "crash"
    if state == "UNKNOWN":
        return HOLD, cause
    proven = {"COMPLETING": passed or cause == "launch_failed", "TIMEOUT": passed}
    if state in ("RUNNING", "NODE_FAIL", "BOOT_FAIL") or proven.get(state, False):
        return REQUEUE, cause
    return EXIT, "preempted" if preempted else "cancelled"


def test_every_end_in_every_state_at_every_time_is_decided_as_the_table_says() -> None:
    seen = set()
    for code, state, left, preempted in itertools.product(CODES, STATES, LEFT, (False, True)):
        facts = FACTS._replace(exit_code=code, job_state=state, seconds_left=left, preempted=preempted)
        decision = decide(facts)
        assert (decision.action, decision.cause) == _expected(code, state, left, preempted), facts
        # Whatever else: what a person cancelled stays cancelled, what is complete stays complete.
        if state == "CANCELLED":
            assert decision.action == EXIT
        assert decide(facts._replace(done=True))[:2] == (EXIT, "done")
        if code != 0:
            assert decide(facts._replace(restarts_now=1))[:2] == (EXIT, "requeued_by_slurm")
        seen.add(decision[:2])
    assert len(seen) == 5 + 7 + 7, sorted(seen)  # five ways to leave; each of seven causes held, and requeued


KIND_OF = {
    "preempted": 0,
    "walltime": 0,
    "requeued_by_slurm": 0,
    "node_lost": 1,
    "launch_failed": 1,
    "bad_node": 1,
    "abandoned": 1,
}
KIND_OF |= {"crash": 2, "bring_up_failed": 2}
FACTS_OF: dict[str, dict[str, Any]] = {
    "preempted": {"exit_code": 75},
    "walltime": {"exit_code": 75, "seconds_left": 100.0},
    "node_lost": {"exit_code": 78},
    "launch_failed": {"exit_code": 233},
    "bad_node": {"exit_code": 76},
    "crash": {"exit_code": 1},
    "bring_up_failed": {"exit_code": 77},
}


def test_each_kind_of_end_has_a_budget_of_its_own_and_progress_renews_it() -> None:
    """With max_crashes = 3 the two attempts before and this one are held when all three are of one kind."""
    for cause, first, second in itertools.product(FACTS_OF, KIND_OF, KIND_OF):
        facts = FACTS._replace(past=(Past(first, False), Past(second, False)), **FACTS_OF[cause])
        same = [name for name in (first, second, cause) if KIND_OF[name] == KIND_OF[cause]]
        is_held = len(same) == 3 and KIND_OF[cause] != 0  # interruptions have a larger budget
        assert decide(facts)[:2] == (HOLD if is_held else REQUEUE, cause), (cause, first, second)
        tight = decide(facts._replace(max_interruptions=3))
        assert tight[:2] == (HOLD if len(same) == 3 else REQUEUE, cause), (cause, first, second)
        assert decide(facts._replace(progress=True)).action == REQUEUE
        assert decide(facts._replace(past=(Past(first, False), Past(second, True)))).action == REQUEUE


def test_a_node_that_falls_silent_while_slurm_takes_the_job_away_is_not_to_blame() -> None:
    facts = FACTS._replace(exit_code=78, blamed=("node07",), past=(Past("node_lost", True, ("node07",)),))
    assert decide(facts).exclude == ("node07",)
    assert decide(facts._replace(preempted=True)).exclude == ()
    assert decide(facts._replace(preempted=True, exit_code=76)).exclude == ("node07",)


def test_a_preemption_counts_from_the_start_of_the_job_that_runs_now() -> None:
    job = parse_job("JobId=7 StartTime=2026-11-23T07:00:00 PreemptTime=2026-11-23T07:10:00")
    assert is_preempted(job)
    assert not is_preempted(job | {"StartTime": "2026-11-23T07:20:00"})
    assert not is_preempted(job | {"PreemptTime": "None"})
    assert not is_preempted({})


def test_the_limit_is_start_and_time_limit_whatever_end_time_says() -> None:
    job = {"StartTime": "2026-11-23T07:00:00", "TimeLimit": "1-02:03:04", "EndTime": "2026-11-23T07:00:09"}
    assert limit_of(job) == datetime.datetime(2026, 11, 24, 9, 3, 4).timestamp()
    assert limit_of(job | {"TimeLimit": "UNLIMITED"}) is None
    assert limit_of(job | {"StartTime": "Unknown"}) is None


def test_durations_of_slurms_configuration_are_read_in_seconds() -> None:
    text = "JobRequeue              = 1\nKillWait                = 30 sec\nMaxKillWait = 9 sec\n"
    assert seconds_of(text, "KillWait") == 30.0
    assert seconds_of(text, "JobRequeue") is None
