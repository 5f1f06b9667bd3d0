"""The two ends of an attempt, on the batch host: `begin` opens its record, `end` closes it and decides what follows.

    python3 /path/to/jobs/requeue.py begin RUN            prints shell exports: R1HPC_ATTEMPT, R1HPC_RUN
    python3 /path/to/jobs/requeue.py end RUN ATTEMPT RC   0: leave; 3: the job was requeued, wait for the end

Standard library only and Python >= 3.6: the job's own Python may exist inside the container alone. A record without an
end is closed by the next attempt, so nothing depends on `end` having run.
"""

import argparse
import datetime
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional, Set, Tuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from r1hpc.cluster.requeue import EXIT, HOLD, Decision, Facts, Past, decide, parse_job, parse_nodes

CALL_TIMEOUT_S = 20
"""Seconds that one call of a Slurm command may take."""
PATIENCE_S = 300
"""Seconds for which a controller that does not answer is asked again before a person has to look."""
EXCLUDE_DEADLINE_S = 15
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
    _close_abandoned(run, attempt)
    record = {
        "job_id": job_id,
        "restart": restart,
        "started": time.time(),
        "end_time": _end_time(),
        "batch_host": os.uname()[1],
        "nodes": _nodes(),
    }
    _publish(os.path.join(attempt, "begin.json"), record)
    run_id = str(_read(os.path.join(run, "run.json"))["run_id"])
    _mark_job(job_id, run_id)
    for name, value in (("R1HPC_ATTEMPT", attempt), ("R1HPC_RUN", run_id)):
        print("export {}={}".format(name, shlex.quote(value)))
    return 0


def end(run: str, attempt: str, exit_code: int) -> int:
    """Write end.json, fsynced, and only then carry the decision out."""
    run, attempt = os.path.abspath(run), os.path.abspath(attempt)
    decision = decide(_facts(run, attempt, exit_code))
    close_record(attempt, exit_code, decision)
    print(
        "attempt {}: exit code {}, {}: {} ({})".format(
            os.path.basename(attempt), exit_code, decision.cause, decision.action, decision.reason
        ),
        flush=True,
    )
    settings = _read(os.path.join(run, "run.json"))
    if settings.get("restart") == "chain":
        return _end_in_chain(run, attempt, decision)
    if decision.action == EXIT:
        return 0
    return _requeue(_read(os.path.join(attempt, "begin.json"))["job_id"], decision, settings, blamed_nodes(attempt))


def _end_in_chain(run: str, attempt: str, decision: Decision) -> int:
    """The next job of the chain starts by itself: keep it off bad nodes, and from starting where it should not."""
    if decision.action == HOLD or decision.cause in ("cancelled", "invalid"):
        _publish(os.path.join(run, "HOLD"), {"reason": decision.reason, "attempt": os.path.basename(attempt)})
    if decision.exclude:
        own = _read(os.path.join(attempt, "begin.json"))["job_id"]
        for job in _read(os.path.join(run, "jobs.json")).get("jobs", []):
            if job["job_id"] != own and _job_state(job["job_id"]) == "PENDING":
                names = set(_excluded_now(job["job_id"])) | set(decision.exclude)
                _call(["scontrol", "update", "JobId=" + job["job_id"], "ExcNodeList=" + ",".join(sorted(names))])
    return 0


def close_record(attempt: str, exit_code: int, decision: Decision) -> None:
    """Publish end.json."""
    outcome = _read(os.path.join(attempt, "outcome.json"))
    _publish(
        os.path.join(attempt, "end.json"),
        {
            "exit_code": exit_code,
            "cause": decision.cause,
            "action": decision.action,
            "reason": decision.reason,
            "said": outcome.get("reason", ""),
            "exclude": list(decision.exclude),
            "blamed": list(blamed_nodes(attempt)),
            "progress": made_progress(attempt),
            "ended": time.time(),
        },
    )


def ledger(run: str, before: str) -> Tuple[Past, ...]:
    """The closed attempts since the last submit but `before`, oldest first: who submits anew has mended something."""
    past = []
    submitted = _read(os.path.join(run, "run.json")).get("submitted", 0.0)
    for attempt in _attempts(run):
        record = _read(os.path.join(attempt, "end.json"))
        if attempt != before and record and record["ended"] >= submitted:
            past.append((record["ended"], Past(record["cause"], record["progress"], tuple(record["blamed"]))))
    return tuple(entry for _, entry in sorted(past))


def blamed_nodes(attempt: str) -> Tuple[str, ...]:
    """Nodes that the preflight or the agents name as the reason of the attempt's end."""
    preflight = [node["name"] for node in _read(os.path.join(attempt, "preflight.json")).get("bad_nodes", [])]
    return tuple(sorted(set(preflight) | set(_read(os.path.join(attempt, "outcome.json")).get("lost_nodes", []))))


def made_progress(attempt: str) -> bool:
    """Whether the attempt committed something that no attempt before it had."""
    return bool(_read(os.path.join(attempt, "outcome.json")).get("progress", False))


def _facts(run: str, attempt: str, exit_code: int) -> Facts:
    settings, started = _read(os.path.join(run, "run.json")), _read(os.path.join(attempt, "begin.json"))
    # A success needs no answer of Slurm's.
    patience_s = 0 if exit_code == 0 else PATIENCE_S
    job = parse_job(_call_patiently(["scontrol", "show", "job", "-o", started["job_id"]], patience_s) or "")
    return Facts(
        exit_code=exit_code,
        done=os.path.exists(os.path.join(run, "DONE")),
        restart=int(started["restart"]),
        job_state=job.get("JobState", "UNKNOWN"),
        restarts_now=int(job.get("Restarts", started["restart"])),
        seconds_left=_seconds_left(job),
        lead_s=float(settings.get("signal_lead_s", 0)),
        progress=made_progress(attempt),
        blamed=blamed_nodes(attempt),
        past=ledger(run, attempt),
        max_crashes=int(settings["max_crashes"]),
    )


def _seconds_left(job: Dict[str, str]) -> Optional[float]:
    """Until StartTime + TimeLimit. EndTime would not do: after a scancel it is the time of the scancel."""
    limit = re.match(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)$", job.get("TimeLimit", ""))
    start = _parse_time(job.get("StartTime", ""))
    if limit is None or start is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in limit.groups())
    return start + days * 86400 + hours * 3600 + minutes * 60 + seconds - time.time()


def _requeue(job_id: str, decision: Decision, settings: Dict[str, Any], blamed: Tuple[str, ...]) -> int:
    excluded = sorted(set(_excluded_now(job_id)) | set(decision.exclude))
    pinned, needed = settings.get("pinned", []), int(settings.get("num_nodes", 1))
    wanted = []  # type: List[str]
    if pinned:
        left = [name for name in pinned if name not in excluded]
        innocent = [name for name in left if name not in blamed]
        wanted = (innocent if len(innocent) >= needed else left)[:needed]
        if len(wanted) < needed:
            # A node that is asked for by name and excluded would pend for ever.
            decision = _hold(decision, "{} of the hostfile's {} hosts are left".format(len(left), len(pinned)), needed)
            wanted = []
    elif decision.exclude:
        nodes = _partition_nodes(job_id)
        if nodes and len(nodes - set(excluded)) < needed:
            text = "{} of the partition's {} nodes are left".format(len(nodes - set(excluded)), len(nodes))
            decision = _hold(decision, text, needed)
    verb = "requeuehold" if decision.action == HOLD else "requeue"
    if _call_patiently(["scontrol", verb, job_id], PATIENCE_S) is None:
        print("scontrol {} {} failed: the job ends here".format(verb, job_id), file=sys.stderr)
        return 1
    if decision.exclude or wanted:
        _move(job_id, excluded, wanted)
    if decision.action == HOLD:
        print("held: {}; after mending it: scontrol release {}".format(decision.reason, job_id), flush=True)
    return REQUEUED


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
        if _call(change) is not None and set(excluded) <= set(_excluded_now(job_id)):
            if excluded:
                print("excluded from now on: {}".format(", ".join(excluded)), flush=True)
            return
        time.sleep(0.3)
    print("could not set {} within {} s".format(" ".join(change[2:]), EXCLUDE_DEADLINE_S), file=sys.stderr)


def _partition_nodes(job_id: str) -> Set[str]:
    """The nodes that the job could run on at all; empty when Slurm does not say."""
    partition = parse_job(_call(["scontrol", "show", "job", "-o", job_id]) or "").get("Partition")
    return set((_call(["sinfo", "-h", "-p", partition, "-N", "-o", "%N"]) or "").split()) if partition else set()


def _excluded_now(job_id: str) -> List[str]:
    """The names in the job's ExcNodeList."""
    value = parse_job(_call(["scontrol", "show", "job", "-o", job_id]) or "").get("ExcNodeList", "(null)")
    return [] if value == "(null)" else (_call(["scontrol", "show", "hostnames", value]) or "").split()


def _close_abandoned(run: str, current: str) -> None:
    """Close the records of attempts that never reached `end`: their batch host died, or Slurm killed the script."""
    for attempt in _attempts(run):
        opened = os.path.exists(os.path.join(attempt, "begin.json"))
        if attempt != current and opened and not os.path.exists(os.path.join(attempt, "end.json")):
            close_record(attempt, -1, Decision(EXIT, "abandoned", "no end was recorded: the batch host died"))


def _attempts(run: str) -> List[str]:
    folder = os.path.join(run, "attempts")
    return sorted(os.path.join(folder, name) for name in os.listdir(folder)) if os.path.isdir(folder) else []


def _job_id() -> str:
    """The id to requeue by: the last element of an array has the array's own id in SLURM_JOB_ID."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return "{}_{}".format(array, os.environ["SLURM_ARRAY_TASK_ID"]) if array else os.environ["SLURM_JOB_ID"]


def _end_time() -> Optional[float]:
    """Unix time of the job's limit: from the environment since Slurm 23.02, from squeue before."""
    if "SLURM_JOB_END_TIME" in os.environ:
        return float(os.environ["SLURM_JOB_END_TIME"])
    # By _job_id: squeue takes the job id of an array's last element for the whole array.
    text = _call(["squeue", "-h", "-j", _job_id(), "-o", "%e"]) or ""
    return _parse_time(text)


def _parse_time(text: str) -> Optional[float]:
    """Slurm's standard time as Unix time; None for Unknown, N/A or several lines."""
    match = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\s*$", text)
    return datetime.datetime.strptime(match.group(1), "%Y-%m-%dT%H:%M:%S").timestamp() if match else None


def _job_state(job_id: str) -> str:
    return parse_job(_call(["scontrol", "show", "job", "-o", job_id]) or "").get("JobState", "UNKNOWN")


def _mark_job(job_id: str, run_id: str) -> None:
    """Name the run in the job's comment, where submit did not: a second submit of a live run must find the job."""
    job = _call(["scontrol", "show", "job", "-o", job_id])
    if job is not None and " Comment=r1hpc=" not in job:
        _call(["scontrol", "update", "JobId=" + job_id, "Comment=r1hpc=" + run_id])


def _nodes() -> List[Dict[str, str]]:
    """The job's nodes in Slurm's order."""
    names = (_call(["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]) or "").split()
    text = _call(["scontrol", "show", "node", "-o", os.environ["SLURM_JOB_NODELIST"]]) or ""
    addresses = {node["name"]: node["address"] for node in parse_nodes(text)}
    return [{"name": name, "address": addresses.get(name, name)} for name in names]


def _call_patiently(argv: List[str], patience_s: float) -> Optional[str]:
    """_call, again and again while it fails: a controller that restarts must not cost a run its place."""
    deadline = time.time() + patience_s
    while True:
        answer = _call(argv)
        if answer is not None or time.time() >= deadline or shutil.which(argv[0]) is None:
            return answer
        time.sleep(5)


def _call(argv: List[str]) -> Optional[str]:
    """Standard output of a Slurm command, or None when it failed or took too long; the reason goes to stderr."""
    try:
        done = subprocess.run(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            timeout=CALL_TIMEOUT_S,
            check=False,
            env=dict(os.environ, SLURM_TIME_FORMAT="standard"),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print("{}: {}".format(" ".join(argv), error), file=sys.stderr)
        return None
    if done.returncode != 0:
        print("{}: {}".format(" ".join(argv), done.stderr.decode(errors="replace").strip()), file=sys.stderr)
        return None
    return done.stdout.decode(errors="replace")


def _read(path: str) -> Dict[str, Any]:
    """A JSON object, {} when the file is not there."""
    try:
        with open(path, encoding="utf-8") as stream:
            value = json.load(stream)  # type: Dict[str, Any]
            return value
    except FileNotFoundError:
        return {}


def _publish(path: str, value: Dict[str, Any]) -> None:
    """Write beside, fsync, rename. (r1hpc.publish needs a newer Python than the batch host may have.)"""
    temporary = "{}.{}.tmp".format(path, os.getpid())
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(value, stream, indent=2, sort_keys=True)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
