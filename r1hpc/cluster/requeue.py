"""What becomes of a job whose attempt has ended: a pure function of the exit code, the ledger and what Slurm says.

Standard library only and Python >= 3.6: it runs on the batch host, outside any container.
"""

from typing import Dict, List, NamedTuple, Optional, Tuple

from r1hpc import exit_codes

KILLED_BY_REQUEST = (128 + 10, 128 + 15)
"""srun's exit code when a task died of USR1 or TERM: it was asked to stop before it could answer."""

EXIT = "exit"
"""Leave with the attempt's own exit code; nothing starts again."""
REQUEUE = "requeue"
"""Run again, as the same job."""
HOLD = "hold"
"""A person has to look: the job stays in the queue, held, with the reason."""


class Past(NamedTuple):
    """One earlier attempt, as the ledger remembers it."""

    cause: str
    progress: bool
    """It committed something that no attempt before it had."""
    blamed: Tuple[str, ...] = ()
    """Nodes that it named as the reason of its end."""


class Facts(NamedTuple):
    """All that the decision may depend on."""

    exit_code: int
    done: bool
    """The run's DONE marker exists."""
    restart: int
    """SLURM_RESTART_COUNT of this attempt."""
    job_state: str
    """JobState now, or UNKNOWN when Slurm does not answer."""
    restarts_now: int
    """Restarts that Slurm counts now; above `restart` when it has requeued the job by itself."""
    seconds_left: Optional[float]
    """Until start + time limit, as Slurm says now; None when unknown. Negative: the limit has passed."""
    lead_s: float
    """How long before the time limit the warning signal comes."""
    progress: bool
    """This attempt committed something new."""
    blamed: Tuple[str, ...]
    """Nodes that preflight or the agents name as the reason."""
    past: Tuple[Past, ...]
    max_crashes: int


class Decision(NamedTuple):
    """What to do, why, and which nodes never to use again."""

    action: str
    cause: str
    reason: str
    exclude: Tuple[str, ...] = ()


def decide(facts: Facts) -> Decision:
    """Decide what becomes of the job.

    A cancelled job is never requeued: only JobState=RUNNING may be, or a time limit or launch failure that is proven.
    """
    if facts.done or facts.exit_code == exit_codes.SUCCESS:
        return Decision(EXIT, "done", "the attempt ended as it should")
    if facts.restarts_now > facts.restart:
        return Decision(EXIT, "requeued_by_slurm", "Slurm has put the job back in the queue by itself")
    cause = _cause(facts)
    limit_passed = facts.seconds_left is not None and facts.seconds_left <= 0
    if facts.job_state not in ("RUNNING", "UNKNOWN") and cause != "launch_failed" and not limit_passed:
        return Decision(EXIT, "cancelled", "the job is {}, not RUNNING: cancelled".format(facts.job_state))
    if facts.job_state == "UNKNOWN":
        return Decision(HOLD, cause, "Slurm does not say in what state the job is")
    if cause == "invalid":
        return Decision(EXIT, cause, "the configuration or command line is wrong: trying again cannot help")
    exclude = _exclude(facts, cause)
    failed = _same_kind_without_progress(facts, cause)
    if failed >= facts.max_crashes:
        reason = "{} attempts without progress ended so, the last one: {} (run.max_crashes = {})".format(
            failed, _REASONS[cause], facts.max_crashes
        )
        return Decision(HOLD, cause, reason, exclude)
    return Decision(REQUEUE, cause, _REASONS[cause], exclude)


_KINDS = {
    "preempted": "interrupted",
    "walltime": "interrupted",
    "node_lost": "node",
    "launch_failed": "node",
    "bad_node": "node",
    "abandoned": "node",
}  # type: Dict[str, str]
"""Each kind has a budget of its own: two preemptions and a lost node are no crash loop. Others are crashes."""

_REASONS = {
    "bad_node": "a node failed the preflight",
    "node_lost": "a node was lost",
    "bring_up_failed": "Ray did not come up",
    "launch_failed": "srun could not start the tasks",
    "walltime": "the time limit is near",
    "preempted": "the job was asked to stop",
    "crash": "the attempt failed",
}  # type: Dict[str, str]


def _cause(facts: Facts) -> str:
    """The exit code in words; a stop request is told apart by the clock."""
    if facts.exit_code == exit_codes.INVALID:
        return "invalid"
    if facts.exit_code == exit_codes.PREFLIGHT_FAILED:
        return "bad_node"
    if facts.exit_code == exit_codes.NODE_LOST:
        return "node_lost"
    if facts.exit_code == exit_codes.BRING_UP_FAILED:
        return "bring_up_failed"
    if facts.exit_code == exit_codes.SRUN_LAUNCH_FAILED:
        return "launch_failed"
    # Slurm checks limits about every 30 s and may send the warning up to 60 s early.
    if facts.seconds_left is not None and facts.seconds_left <= facts.lead_s + 60:
        return "walltime"
    if facts.exit_code in (exit_codes.STOP_REQUESTED, *KILLED_BY_REQUEST):
        return "preempted"
    return "crash"


def _same_kind_without_progress(facts: Facts, cause: str) -> int:
    """Attempts since the last progress that ended for the same kind of cause, this one included."""
    if facts.progress:
        return 0
    kind, count = _KINDS.get(cause, "crash"), 1
    for past in reversed(facts.past):
        if past.progress:
            break
        count += _KINDS.get(past.cause, "crash") == kind
    return count


def _exclude(facts: Facts, cause: str) -> Tuple[str, ...]:
    """Nodes to leave out: those that failed the preflight now, and those blamed twice for a loss."""
    if cause == "bad_node":
        return tuple(sorted(set(facts.blamed)))
    blame = {}  # type: Dict[str, int]
    for names in [past.blamed for past in facts.past] + [facts.blamed]:
        for name in names:
            blame[name] = blame.get(name, 0) + 1
    return tuple(sorted(name for name, count in blame.items() if count >= 2))


def parse_job(text: str) -> Dict[str, str]:
    """`scontrol show job -o` as a dictionary; the first KEY=VALUE of each key wins."""
    fields = {}  # type: Dict[str, str]
    for word in text.split():
        key, equals, value = word.partition("=")
        if equals and key not in fields:
            fields[key] = value
    return fields


def parse_nodes(text: str) -> List[Dict[str, str]]:
    """`scontrol show node -o` as [{name, address}] in the order of the text."""
    nodes = []
    for line in text.splitlines():
        fields = parse_job(line)
        if "NodeName" in fields:
            nodes.append({"name": fields["NodeName"], "address": fields.get("NodeAddr", fields["NodeName"])})
    return nodes
