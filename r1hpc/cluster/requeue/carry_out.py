"""What was decided, done: requeue or hold, away from bad nodes; in a chain, what the jobs that follow have to know."""

import os
import shutil
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

from r1hpc.cluster.requeue.commands import PATIENCE_S, PAUSE_S, call, excluded_nodes, partition_nodes, show_job
from r1hpc.cluster.requeue.decision import EXIT, HOLD, HOPELESS, Decision, ended_by_slurm
from r1hpc.cluster.requeue.files import publish, read
from r1hpc.cluster.requeue.ledger import mark_carried_out
from r1hpc.cluster.requeue.texts import is_preempted, limit_of

EXCLUDE_DEADLINE_S = 15


def requeue(attempt: str, decision: Decision, settings: Dict[str, Any], blamed: Tuple[str, ...]) -> Optional[Decision]:
    """Put the attempt's job back in the queue, held where that is the decision.

    Returns what was done in the end: to leave, where the job has been cancelled meanwhile. None when Slurm refuses.
    """
    opened = read(os.path.join(attempt, "begin.json"))
    job_id = opened["job_id"]
    before = excluded_nodes(job_id)
    wanted, decision = _choose_nodes(job_id, decision, settings, blamed, before)
    done = _ask(job_id, int(opened["restart"]), decision)
    if done is None:
        print("job {} could not be requeued: it ends here".format(job_id), file=sys.stderr)
        return None
    mark_carried_out(attempt, done)
    if done.action == EXIT:
        print("not requeued: {}".format(done.reason), flush=True)
        return done
    if done.exclude or wanted:
        _move(job_id, sorted({*before, *done.exclude}), wanted)
    if done.action == HOLD:
        print("held: {}; after mending it: scontrol release {}".format(done.reason, job_id), flush=True)
    return done


def _ask(job_id: str, restart: int, decision: Decision) -> Optional[Decision]:
    """Ask for the requeue until Slurm has heard it, and look before each time.

    A requeue succeeds on a job that completes, so one that was cancelled since the decision would run again.
    """
    verb = "requeuehold" if decision.action == HOLD else "requeue"
    deadline = time.time() + PATIENCE_S
    while True:
        job = show_job(job_id)
        if int(job.get("Restarts", restart)) > restart or job.get("JobState") == "PENDING":
            # It was heard, but we were killed or had no answer: another would end the attempt that may have begun.
            return decision
        if job:
            limit = limit_of(job)
            seconds_left = None if limit is None else limit - time.time()
            over = ended_by_slurm(job.get("JobState", "UNKNOWN"), seconds_left, is_preempted(job), decision.cause)
            if over is not None:
                return over
            if call(["scontrol", verb, job_id]) is not None:
                return decision
        if time.time() >= deadline or shutil.which("scontrol") is None:
            return None
        time.sleep(PAUSE_S)


def prepare_chain(run: str, attempt: str, decision: Decision) -> None:
    """The next job of the chain starts by itself: keep it off bad nodes, and from starting where it should not."""
    if decision.action == HOLD or decision.cause in ("cancelled", *HOPELESS):
        publish(os.path.join(run, "HOLD"), {"reason": decision.reason, "attempt": os.path.basename(attempt)})
    if decision.exclude:
        own = read(os.path.join(attempt, "begin.json"))["job_id"]
        for job in read(os.path.join(run, "jobs.json")).get("jobs", []):
            if job["job_id"] != own and show_job(job["job_id"]).get("JobState") == "PENDING":
                names = set(excluded_nodes(job["job_id"])) | set(decision.exclude)
                call(["scontrol", "update", "JobId=" + job["job_id"], "ExcNodeList=" + ",".join(sorted(names))])
    mark_carried_out(attempt, decision)


def _choose_nodes(
    job_id: str, decision: Decision, settings: Dict[str, Any], blamed: Tuple[str, ...], before: List[str]
) -> Tuple[List[str], Decision]:
    """The nodes to ask for by name, if any, and the decision: to hold where too few are left.

    before: nodes that the job excludes already.
    """
    excluded = {*before, *decision.exclude}
    pinned, needed = settings.get("pinned", []), int(settings.get("num_nodes", 1))
    if pinned:
        left = [name for name in pinned if name not in excluded]
        innocent = [name for name in left if name not in blamed]
        wanted = (innocent if len(innocent) >= needed else left)[:needed]
        if len(wanted) == needed:
            return wanted, decision
        # A node that is asked for by name and excluded would pend for ever.
        text = "{} of the hostfile's {} hosts are left, {} are needed".format(len(left), len(pinned), needed)
        return [], _hold(job_id, decision, text, before)
    if decision.exclude:
        nodes = partition_nodes(job_id)
        left_now = nodes - excluded
        if nodes and len(left_now) < needed:
            text = "{} of the partition's {} nodes are left, {} are needed".format(len(left_now), len(nodes), needed)
            return [], _hold(job_id, decision, text, before)
    return [], decision


def _hold(job_id: str, decision: Decision, few: str, before: List[str]) -> Decision:
    """Hold, and exclude nothing more: released with too few nodes left, the job would pend for ever."""
    reason = "{}: {}".format(few, decision.reason)
    if decision.exclude:
        reason += "; bad now: {}".format(", ".join(decision.exclude))
    if before:
        reason += "; excluded before: {}, allowed again by: scontrol update JobId={} ExcNodeList=".format(
            ", ".join(before), job_id
        )
    return decision._replace(action=HOLD, reason=reason, exclude=())


def _move(job_id: str, excluded: List[str], wanted: List[str]) -> None:
    """Set what the pending job excludes, and asks for by name if anything, and read it back.

    Slurm refuses while the job still completes.
    """
    deadline = time.time() + EXCLUDE_DEADLINE_S
    change = ["scontrol", "update", "JobId=" + job_id]
    change += ["ReqNodeList=" + ",".join(wanted)] if wanted else []
    change += ["ExcNodeList=" + ",".join(excluded)] if excluded else []
    while time.time() < deadline:
        if call(change) is not None and set(excluded) <= set(excluded_nodes(job_id)):
            if excluded:
                print("excluded from now on: {}".format(", ".join(excluded)), flush=True)
            return
        time.sleep(0.3)
    print("could not set {} within {} s".format(" ".join(change[2:]), EXCLUDE_DEADLINE_S), file=sys.stderr)
