"""What becomes of a job whose attempt has ended: a pure function of the exit code, the ledger and what Slurm says."""

from typing import Dict, NamedTuple, Optional, Tuple

from r1hpc import exit_codes

KILLED_BY_REQUEST = (128 + 10, 128 + 15)
"""srun's exit code when a task died of USR1 or TERM: it was asked to stop before it could answer."""

EXIT = "exit"
"""Leave with the attempt's own exit code; nothing starts again."""
REQUEUE = "requeue"
"""Run again, as the same job."""
HOLD = "hold"
"""A person has to look: the job stays in the queue, held, with the reason."""

INTERRUPTED, NODE, CRASH = "interrupted", "node", "crash"
KINDS: Dict[str, str] = {
    "preempted": INTERRUPTED,
    "walltime": INTERRUPTED,
    "requeued_by_slurm": INTERRUPTED,
    "node_lost": NODE,
    "launch_failed": NODE,
    "bad_node": NODE,
    "abandoned": NODE,
}
"""Each kind has a budget of its own: two preemptions and a lost node are no crash loop. Others are crashes.

That of interruptions is larger (max_interruptions), since nothing is wrong with a run that is preempted. It has an end,
also where Slurm proves each preemption: a run that is interrupted so often before it could commit once uses up nodes
and gets nowhere, which only a person can mend (save more often, another partition).
"""

_REASONS: Dict[str, str] = {
    "bad_node": "a node failed the preflight",
    "node_lost": "a node was lost",
    "bring_up_failed": "Ray did not come up",
    "launch_failed": "srun could not start the tasks",
    "walltime": "the time limit is near",
    "preempted": "the job was asked to stop",
    "crash": "the attempt failed",
}

_CAUSES: Dict[int, str] = {
    exit_codes.INVALID: "invalid",
    exit_codes.CANARY_FAILED: "canary",
    exit_codes.PREFLIGHT_FAILED: "bad_node",
    exit_codes.NODE_LOST: "node_lost",
    exit_codes.BRING_UP_FAILED: "bring_up_failed",
    exit_codes.SRUN_LAUNCH_FAILED: "launch_failed",
    exit_codes.OUT_OF_TIME: "walltime",
}
HOPELESS: Dict[str, str] = {
    "invalid": "the configuration, the command line or the site is wrong: trying again cannot help",
    "canary": "the canary failed: nothing of the run was started, and a person has to look first",
}
"""Causes that no other attempt makes good, and what is said of them."""
_WHATEVER_ELSE = ("invalid", "bad_node")
"""Causes that a stop request at the same time does not explain."""

SIGNAL_SLACK_S = 60
"""Slurm checks limits about every 30 s, and may send the warning this much early: sbatch(1)."""


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
    """Attempts without progress that ended for one kind of cause, before the job is held."""
    max_interruptions: int
    """The same of interruptions."""
    preempted: bool = False
    """Slurm says that it is taking the job away."""


class Decision(NamedTuple):
    """What to do, why, and which nodes never to use again."""

    action: str
    cause: str
    reason: str
    exclude: Tuple[str, ...] = ()


def decide(facts: Facts) -> Decision:
    """Decide what becomes of the job."""
    if facts.done or facts.exit_code == exit_codes.SUCCESS:
        return Decision(EXIT, "done", "the attempt ended as it should")
    if facts.restarts_now > facts.restart or facts.job_state == "PENDING":
        return Decision(EXIT, "requeued_by_slurm", "Slurm has put the job back in the queue by itself")
    cause = _cause(facts)
    if cause in HOPELESS:
        return Decision(EXIT, cause, HOPELESS[cause])
    if facts.job_state == "UNKNOWN":
        return Decision(HOLD, cause, "Slurm does not say in what state the job is")
    over = ended_by_slurm(facts.job_state, facts.seconds_left, facts.preempted, cause)
    if over is not None:
        return over
    exclude = _exclude(facts, cause)
    failed = _same_kind_without_progress(facts, cause)
    key, budget = _budget(facts, cause)
    if failed >= budget:
        reason = "{} attempts without progress ended so, the last one: {} ({} = {})".format(
            failed, _REASONS[cause], key, budget
        )
        return Decision(HOLD, cause, reason, exclude)
    return Decision(REQUEUE, cause, _REASONS[cause], exclude)


def ended_by_slurm(job_state: str, seconds_left: Optional[float], preempted: bool, cause: str) -> Optional[Decision]:
    """The decision to leave a job alone that was cancelled, or that Slurm is ending; None where it may run again.

    It may only while it is RUNNING, or where something proves another end than a scancel: COMPLETING is what a scancel
    shows, but a time limit and a failed launch too.
    """
    limit_passed = seconds_left is not None and seconds_left <= 0
    if job_state in ("RUNNING", "NODE_FAIL", "BOOT_FAIL"):
        return None
    if job_state == "COMPLETING" and (limit_passed or cause == "launch_failed"):
        return None
    if job_state == "TIMEOUT" and limit_passed:
        return None
    if preempted:
        return Decision(EXIT, "preempted", "Slurm is ending the preempted job, and brings it back or does not")
    return Decision(EXIT, "cancelled", "the job is {}, not RUNNING: cancelled".format(job_state))


def _cause(facts: Facts) -> str:
    """The exit code in words; what came from outside is told apart by what Slurm says and by the clock."""
    cause = _CAUSES.get(facts.exit_code)
    if cause is not None and cause in _WHATEVER_ELSE:
        return cause
    # Tasks that Slurm signals leave at different moments, so some of them may seem lost, or the attempt crashed.
    if facts.preempted:
        return "preempted"
    if cause is not None:
        return cause
    asked = facts.exit_code == exit_codes.STOP_REQUESTED or facts.exit_code in KILLED_BY_REQUEST
    warned_s = facts.lead_s + SIGNAL_SLACK_S if asked else 0.0
    if facts.seconds_left is not None and facts.seconds_left <= warned_s:
        return "walltime"
    return "preempted" if asked else "crash"


def _budget(facts: Facts, cause: str) -> Tuple[str, int]:
    """The key that sets it, and how many attempts of the cause's kind it allows."""
    if KINDS.get(cause) == INTERRUPTED:
        return "run.max_interruptions", facts.max_interruptions
    return "run.max_crashes", facts.max_crashes


def _same_kind_without_progress(facts: Facts, cause: str) -> int:
    """Attempts since the last progress that ended for the same kind of cause, this one included."""
    if facts.progress:
        return 0
    kind, count = KINDS.get(cause, CRASH), 1
    for past in reversed(facts.past):
        if past.progress:
            break
        count += KINDS.get(past.cause, CRASH) == kind
    return count


def _exclude(facts: Facts, cause: str) -> Tuple[str, ...]:
    """Nodes to leave out: those that failed the preflight now, and those blamed twice for a loss."""
    if cause == "bad_node":
        return tuple(sorted(set(facts.blamed)))
    now = () if KINDS.get(cause) == INTERRUPTED else facts.blamed
    blame: Dict[str, int] = {}
    for names in [past.blamed for past in facts.past] + [now]:
        for name in names:
            blame[name] = blame.get(name, 0) + 1
    return tuple(sorted(name for name, count in blame.items() if count >= 2))
