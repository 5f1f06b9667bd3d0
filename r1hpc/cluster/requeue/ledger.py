"""The attempts of a run on disk: how each ended, what it named as the reason, what was decided and whether it was done.

end.json is written before the decision is carried out (`carried_out` false) and again after it. So a kill in between
loses neither: the script tries again, and where the whole script is gone, `unfinished` says so to whoever looks next.
"""

import os
import time
from typing import Any, Dict, List, Optional, Tuple

from r1hpc.cluster.requeue.decision import EXIT, INTERRUPTED, KINDS, Decision, Past
from r1hpc.cluster.requeue.files import publish, read


def attempts(run: str) -> List[str]:
    """The directories of all attempts, by name."""
    folder = os.path.join(run, "attempts")
    return sorted(os.path.join(folder, name) for name in os.listdir(folder)) if os.path.isdir(folder) else []


def close_record(attempt: str, exit_code: int, decision: Decision) -> None:
    """Publish end.json with a decision that is still to be carried out, unless it is to do nothing."""
    interrupted = KINDS.get(decision.cause) == INTERRUPTED
    publish(
        os.path.join(attempt, "end.json"),
        {
            "exit_code": exit_code,
            "cause": decision.cause,
            "action": decision.action,
            "reason": decision.reason,
            "said": said(attempt),
            "exclude": list(decision.exclude),
            # A node that falls silent while Slurm takes the job away is not to blame.
            "blamed": [] if interrupted else list(blamed_nodes(attempt)),
            "progress": made_progress(attempt),
            "ended": time.time(),
            "carried_out": decision.action == EXIT,
        },
    )


def said(attempt: str) -> str:
    """What the attempt itself said of its end: its agents, or the preflight where they were never started."""
    reason = read(os.path.join(attempt, "outcome.json")).get("reason")
    return str(reason or read(os.path.join(attempt, "preflight.json")).get("problem") or "")


def mark_carried_out(attempt: str, decision: Decision) -> None:
    """Note that the decision, maybe another than was recorded first, has been carried out."""
    path = os.path.join(attempt, "end.json")
    change = {"action": decision.action, "cause": decision.cause, "reason": decision.reason, "carried_out": True}
    publish(path, dict(read(path), **change))


def recorded_decision(attempt: str) -> Optional[Decision]:
    """What end.json says; None when it is not there."""
    record = read(os.path.join(attempt, "end.json"))
    if not record:
        return None
    return Decision(record["action"], record["cause"], record["reason"], tuple(record["exclude"]))


def is_carried_out(attempt: str) -> bool:
    """Whether what end.json says has been done."""
    return bool(read(os.path.join(attempt, "end.json")).get("carried_out", True))


def close_abandoned(run: str, current: str) -> None:
    """Close the records of attempts that never came to their end: their batch host died, or Slurm killed the script."""
    for attempt in attempts(run):
        if attempt != current and is_open(attempt):
            close_record(attempt, -1, Decision(EXIT, "abandoned", "no end was recorded: the batch host died"))


def is_open(attempt: str) -> bool:
    """Whether the attempt has begun and not ended."""
    begun, ended = (os.path.exists(os.path.join(attempt, name)) for name in ("begin.json", "end.json"))
    return begun and not ended


def unfinished(run: str) -> Optional[str]:
    """Why a run of which nothing is live did not come back, in words; None when its last attempt's end is complete."""
    begun = [(read(os.path.join(attempt, "begin.json")), attempt) for attempt in attempts(run)]
    known = [(record["started"], attempt) for record, attempt in begun if record]
    if not known or os.path.exists(os.path.join(run, "DONE")):
        return None
    last = max(known)[1]
    name = os.path.basename(last)
    if is_open(last):
        return "attempt {} was cut off before its end was recorded, and its job did not come back".format(name)
    decision = recorded_decision(last)
    if decision is None or is_carried_out(last):
        return None
    return "attempt {} ended ({}: {}), and was cut off before its {} was asked for".format(
        name, decision.cause, decision.reason, decision.action
    )


def past_attempts(run: str, before: str) -> Tuple[Past, ...]:
    """The closed attempts since the last submit but `before`, oldest first: who submits anew has mended something."""
    past = []
    submitted = read(os.path.join(run, "run.json")).get("submitted", 0.0)
    for attempt in attempts(run):
        record = read(os.path.join(attempt, "end.json"))
        if attempt != before and record and record["ended"] >= submitted:
            past.append((record["ended"], Past(record["cause"], record["progress"], tuple(record["blamed"]))))
    return tuple(entry for _, entry in sorted(past))


def blamed_nodes(attempt: str) -> Tuple[str, ...]:
    """Nodes that the preflight or the agents name as the reason of the attempt's end."""
    bad: List[Dict[str, Any]] = read(os.path.join(attempt, "preflight.json")).get("bad_nodes", [])
    lost = read(os.path.join(attempt, "outcome.json")).get("lost_nodes", [])
    return tuple(sorted({node["name"] for node in bad} | set(lost)))


def made_progress(attempt: str) -> bool:
    """Whether the attempt committed something that no attempt before it had."""
    return os.path.exists(os.path.join(attempt, "committed.json"))
