"""The two ends of an attempt, on the batch host: `begin` opens its record, `end` closes it and decides what follows.

    python3 /path/to/jobs/requeue.py begin RUN            prints shell exports: R1HPC_ATTEMPT, R1HPC_RUN
    python3 /path/to/jobs/requeue.py end RUN ATTEMPT RC   0: leave; 3: the job was requeued, wait for the end

Standard library only and Python >= 3.6: the job's own Python may exist inside the container alone. A record without an
end is closed by the next attempt, so nothing depends on `end` having run; one that was killed may be run again.
"""

import argparse
import os
import shlex
import sys
import time
from typing import Dict, List, Optional

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from r1hpc.cluster.requeue.carry_out import prepare_chain, requeue
from r1hpc.cluster.requeue.commands import PATIENCE_S, call, show_job
from r1hpc.cluster.requeue.decision import EXIT, Facts, decide
from r1hpc.cluster.requeue.files import publish, read
from r1hpc.cluster.requeue.ledger import (
    blamed_nodes,
    close_abandoned,
    close_record,
    is_carried_out,
    made_progress,
    past_attempts,
    recorded_decision,
)
from r1hpc.cluster.requeue.texts import (
    is_preempted,
    limit_of,
    parse_duration,
    parse_job,
    parse_nodes,
    parse_time,
    preempts_by_qos,
    seconds_of,
)

REQUEUED = 3
"""Exit code of `end` after a requeue: the script has to live until Slurm ends it, or its own exit code wins."""


def main(argv: Optional[List[str]] = None) -> int:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(prog="requeue.py", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command")
    commands.required = True
    begin_parser = commands.add_parser("begin", help="open the attempt's record and print its exports")
    begin_parser.add_argument("run")
    end_parser = commands.add_parser("end", help="close the record, decide, requeue")
    end_parser.add_argument("run")
    end_parser.add_argument("attempt")
    end_parser.add_argument("exit_code", type=int)
    arguments = parser.parse_args(argv)
    if arguments.command == "begin":
        return begin(arguments.run)
    return end(arguments.run, arguments.attempt, arguments.exit_code)


def begin(run: str) -> int:
    """Write begin.json of this attempt and print the exports that the batch script evaluates."""
    run = os.path.abspath(run)
    job_id, restart = _job_id(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    attempt = os.path.join(run, "attempts", "{}-r{}".format(job_id, restart))
    if os.path.exists(attempt):
        # Job ids begin again on a new controller: what another job of this number left is not this attempt's.
        os.rename(attempt, "{}.before-{}".format(attempt, int(time.time())))
    for name in ("logs", "preflight"):
        os.makedirs(os.path.join(attempt, name), exist_ok=True)
    close_abandoned(run, attempt)
    job = show_job(job_id)
    config = call(["scontrol", "show", "config"]) or ""
    record = {
        "job_id": job_id,
        "restart": restart,
        "started": time.time(),
        "end_time": _end_time(job),
        "grace_s": _qos_grace_s(job) if preempts_by_qos(config) else _grace_s(job),
        "kill_wait_s": seconds_of(config, "KillWait"),
        "batch_host": os.uname()[1],
        "nodes": _nodes(),
    }
    publish(os.path.join(attempt, "begin.json"), record)
    run_id = str(read(os.path.join(run, "run.json"))["run_id"])
    _mark_job(job_id, job, run_id)
    for name, value in (("R1HPC_ATTEMPT", attempt), ("R1HPC_RUN", run_id)):
        print("export {}={}".format(name, shlex.quote(value)))
    return 0


def end(run: str, attempt: str, exit_code: int) -> int:
    """Write end.json, fsynced, and only then carry the decision out; one that was recorded and not yet carried out is.

    In this order: a cause that is lost cannot be found again, while a requeue that is missing can be made up for.
    """
    run, attempt = os.path.abspath(run), os.path.abspath(attempt)
    settings = read(os.path.join(run, "run.json"))
    is_chain = settings.get("restart") == "chain"
    decision = recorded_decision(attempt)
    if decision is None:
        decision = decide(_facts(run, attempt, exit_code))
        close_record(attempt, exit_code, decision)
    elif is_carried_out(attempt):
        return 0 if is_chain or decision.action == EXIT else REQUEUED
    print(
        "attempt {}: exit code {}, {}: {} ({})".format(
            os.path.basename(attempt), exit_code, decision.cause, decision.action, decision.reason
        ),
        flush=True,
    )
    if is_chain:
        prepare_chain(run, attempt, decision)
        return 0
    if decision.action == EXIT:
        return 0
    done = requeue(attempt, decision, settings, blamed_nodes(attempt))
    if done is None:
        return 1
    return 0 if done.action == EXIT else REQUEUED


def _facts(run: str, attempt: str, exit_code: int) -> Facts:
    settings, started = read(os.path.join(run, "run.json")), read(os.path.join(attempt, "begin.json"))
    # A success needs no answer of Slurm's.
    job = show_job(started["job_id"], 0 if exit_code == 0 else PATIENCE_S)
    limit = limit_of(job)
    return Facts(
        exit_code=exit_code,
        done=os.path.exists(os.path.join(run, "DONE")),
        restart=int(started["restart"]),
        job_state=job.get("JobState", "UNKNOWN"),
        restarts_now=int(job.get("Restarts", started["restart"])),
        seconds_left=None if limit is None else limit - time.time(),
        lead_s=float(settings.get("signal_lead_s", 0)),
        progress=made_progress(attempt),
        blamed=blamed_nodes(attempt),
        past=past_attempts(run, attempt),
        max_crashes=int(settings["max_crashes"]),
        # A run that was submitted before there was such a budget has its default.
        max_interruptions=int(settings.get("max_interruptions", 20)),
        preempted=is_preempted(job),
    )


def _job_id() -> str:
    """The id to requeue by: the last element of an array has the array's own id in SLURM_JOB_ID."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return "{}_{}".format(array, os.environ["SLURM_ARRAY_TASK_ID"]) if array else os.environ["SLURM_JOB_ID"]


def _end_time(job: Dict[str, str]) -> Optional[float]:
    """Unix time of the job's limit: from the environment since Slurm 23.02, from the job before."""
    if "SLURM_JOB_END_TIME" in os.environ:
        return float(os.environ["SLURM_JOB_END_TIME"])
    return parse_time(job.get("EndTime", ""))


def _grace_s(job: Dict[str, str]) -> Optional[float]:
    """GraceTime of the job's partition."""
    if "Partition" not in job:
        return None
    value = parse_job(call(["scontrol", "show", "partition", "-o", job["Partition"]]) or "").get("GraceTime", "")
    return float(value) if value.isdigit() else None


def _qos_grace_s(job: Dict[str, str]) -> float:
    """GraceTime of the job's QOS; 0, which means to leave at once, where slurmdbd does not say."""
    if "QOS" not in job:
        return 0.0
    return parse_duration(call(["sacctmgr", "-nP", "show", "qos", job["QOS"], "format=GraceTime"]) or "") or 0.0


def _mark_job(job_id: str, job: Dict[str, str], run_id: str) -> None:
    """Name the run in the job's comment, where submit did not: a second submit of a live run must find the job."""
    if job and not job.get("Comment", "").startswith("r1hpc="):
        call(["scontrol", "update", "JobId=" + job_id, "Comment=r1hpc=" + run_id])


def _nodes() -> List[Dict[str, str]]:
    """The job's nodes in Slurm's order."""
    names = (call(["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]) or "").split()
    text = call(["scontrol", "show", "node", "-o", os.environ["SLURM_JOB_NODELIST"]]) or ""
    addresses = {node["name"]: node["address"] for node in parse_nodes(text)}
    return [{"name": name, "address": addresses.get(name, name)} for name in names]


if __name__ == "__main__":
    sys.exit(main())
