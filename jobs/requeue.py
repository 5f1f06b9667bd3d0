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
import subprocess
import sys
import time
from typing import Any, Dict, List, Optional, Tuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from r1hpc.cluster.requeue import EXIT, HOLD, Decision, Facts, Past, decide, parse_job, parse_nodes

CALL_TIMEOUT_S = 20
"""Seconds that one call of a Slurm command may take; the controller may be busy, but the kill comes soon."""
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
    for name, value in (("R1HPC_ATTEMPT", attempt), ("R1HPC_RUN", str(_read(os.path.join(run, "run.json"))["run_id"]))):
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
    if decision.action == EXIT:
        return 0
    if _read(os.path.join(run, "run.json")).get("restart") == "chain":
        if decision.action == HOLD:
            _publish(os.path.join(run, "HOLD"), {"reason": decision.reason, "attempt": os.path.basename(attempt)})
        return 0
    return _requeue(
        _read(os.path.join(attempt, "begin.json"))["job_id"], decision, _read(os.path.join(run, "run.json"))
    )


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
            "blamed": list(_blamed(attempt)),
            "progress": bool(outcome.get("progress", False)),
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


def _facts(run: str, attempt: str, exit_code: int) -> Facts:
    settings, started = _read(os.path.join(run, "run.json")), _read(os.path.join(attempt, "begin.json"))
    job = parse_job(_call(["scontrol", "show", "job", "-o", started["job_id"]]) or "")
    end_time = started.get("end_time")
    return Facts(
        exit_code=exit_code,
        done=os.path.exists(os.path.join(run, "DONE")),
        restart=int(started["restart"]),
        job_state=job.get("JobState", "UNKNOWN"),
        restarts_now=int(job.get("Restarts", started["restart"])),
        seconds_left=None if end_time is None else end_time - time.time(),
        lead_s=float(settings.get("signal_lead_s", 0)),
        progress=bool(_read(os.path.join(attempt, "outcome.json")).get("progress", False)),
        blamed=_blamed(attempt),
        past=ledger(run, attempt),
        max_crashes=int(settings["max_crashes"]),
    )


def _requeue(job_id: str, decision: Decision, settings: Dict[str, Any]) -> int:
    excluded = _excluded_now(job_id) + list(decision.exclude)
    pinned = [name for name in settings.get("pinned", []) if name not in excluded]
    if settings.get("pinned") and len(pinned) < settings["num_nodes"]:
        # A node that is asked for by name and excluded would pend for ever.
        reason = "{} of the hostfile's {} hosts are left, {} are needed: {}".format(
            len(pinned), len(settings["pinned"]), settings["num_nodes"], decision.reason
        )
        decision = decision._replace(action=HOLD, reason=reason)
    verb = "requeuehold" if decision.action == HOLD else "requeue"
    if _call(["scontrol", verb, job_id]) is None:
        print("scontrol {} {} failed: the job ends here".format(verb, job_id), file=sys.stderr)
        return 1
    if decision.exclude:
        _exclude_nodes(job_id, excluded, pinned[: settings["num_nodes"]] if settings.get("pinned") else [])
    if decision.action == HOLD:
        print("held: {}; after mending it: scontrol release {}".format(decision.reason, job_id), flush=True)
    return REQUEUED


def _exclude_nodes(job_id: str, names: List[str], wanted: List[str]) -> None:
    """Set the pending job's ExcNodeList (and the nodes it asks for by name, if any) and read it back.

    Slurm refuses while the job still completes.
    """
    deadline = time.time() + EXCLUDE_DEADLINE_S
    change = ["scontrol", "update", "JobId=" + job_id]
    change += ["ReqNodeList=" + ",".join(wanted)] if wanted else []
    change += ["ExcNodeList=" + ",".join(sorted(set(names)))]
    while time.time() < deadline:
        _call(change)
        if set(names) <= set(_excluded_now(job_id)):
            print("excluded from now on: {}".format(", ".join(sorted(set(names)))), flush=True)
            return
        time.sleep(0.3)
    print("could not exclude {} within {} s".format(", ".join(names), EXCLUDE_DEADLINE_S), file=sys.stderr)


def _excluded_now(job_id: str) -> List[str]:
    """The names in the job's ExcNodeList."""
    value = parse_job(_call(["scontrol", "show", "job", "-o", job_id]) or "").get("ExcNodeList", "(null)")
    return [] if value == "(null)" else (_call(["scontrol", "show", "hostnames", value]) or "").split()


def _blamed(attempt: str) -> Tuple[str, ...]:
    """Nodes that the preflight or the agents name as the reason."""
    preflight = [node["name"] for node in _read(os.path.join(attempt, "preflight.json")).get("bad_nodes", [])]
    return tuple(sorted(set(preflight) | set(_read(os.path.join(attempt, "outcome.json")).get("lost_nodes", []))))


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
    match = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\s*$", text)
    return datetime.datetime.strptime(match.group(1), "%Y-%m-%dT%H:%M:%S").timestamp() if match else None


def _nodes() -> List[Dict[str, str]]:
    """The job's nodes in Slurm's order."""
    names = (_call(["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]) or "").split()
    text = _call(["scontrol", "show", "node", "-o", os.environ["SLURM_JOB_NODELIST"]]) or ""
    addresses = {node["name"]: node["address"] for node in parse_nodes(text)}
    return [{"name": name, "address": addresses.get(name, name)} for name in names]


def _call(argv: List[str]) -> Optional[str]:
    """Standard output of a Slurm command, or None when it failed or took too long; the reason goes to stderr."""
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=CALL_TIMEOUT_S, check=False)
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
