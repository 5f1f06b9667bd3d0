"""What was decided, done: requeue or hold, away from bad nodes; in a chain, what the jobs that follow have to know."""

import os
import sys
import time
from typing import Any, Dict, List, Tuple

from r1hpc.cluster.requeue.commands import (
    PATIENCE_S,
    call,
    call_patiently,
    excluded_nodes,
    partition_nodes,
    show_job,
)
from r1hpc.cluster.requeue.decision import HOLD, HOPELESS, Decision
from r1hpc.cluster.requeue.files import publish, read
from r1hpc.cluster.requeue.ledger import mark_carried_out

EXCLUDE_DEADLINE_S = 15


def requeue(attempt: str, decision: Decision, settings: Dict[str, Any], blamed: Tuple[str, ...]) -> bool:
    """Put the attempt's job back in the queue, held where that is the decision; False when Slurm refuses."""
    opened = read(os.path.join(attempt, "begin.json"))
    job_id = opened["job_id"]
    if int(show_job(job_id).get("Restarts", opened["restart"])) > int(opened["restart"]):
        # Killed right after it had asked: a second requeue would end the attempt that may have begun by now.
        mark_carried_out(attempt, decision)
        return True
    excluded = sorted(set(excluded_nodes(job_id)) | set(decision.exclude))
    wanted, decision = _choose_nodes(job_id, decision, settings, blamed, excluded)
    verb = "requeuehold" if decision.action == HOLD else "requeue"
    if call_patiently(["scontrol", verb, job_id], PATIENCE_S) is None:
        print("scontrol {} {} failed: the job ends here".format(verb, job_id), file=sys.stderr)
        return False
    mark_carried_out(attempt, decision)
    if decision.exclude or wanted:
        _move(job_id, excluded, wanted)
    if decision.action == HOLD:
        print("held: {}; after mending it: scontrol release {}".format(decision.reason, job_id), flush=True)
    return True


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
    job_id: str, decision: Decision, settings: Dict[str, Any], blamed: Tuple[str, ...], excluded: List[str]
) -> Tuple[List[str], Decision]:
    """The nodes to ask for by name, if any, and the decision: to hold where too few are left."""
    pinned, needed = settings.get("pinned", []), int(settings.get("num_nodes", 1))
    if pinned:
        left = [name for name in pinned if name not in excluded]
        innocent = [name for name in left if name not in blamed]
        wanted = (innocent if len(innocent) >= needed else left)[:needed]
        if len(wanted) == needed:
            return wanted, decision
        # A node that is asked for by name and excluded would pend for ever.
        return [], _hold(decision, "{} of the hostfile's {} hosts are left".format(len(left), len(pinned)), needed)
    if decision.exclude:
        nodes = partition_nodes(job_id)
        left_now = nodes - set(excluded)
        if nodes and len(left_now) < needed:
            text = "{} of the partition's {} nodes are left".format(len(left_now), len(nodes))
            return [], _hold(decision, text, needed)
    return [], decision


def _hold(decision: Decision, left: str, needed: int) -> Decision:
    return decision._replace(action=HOLD, reason="{}, {} are needed: {}".format(left, needed, decision.reason))


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
