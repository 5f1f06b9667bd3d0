"""What Slurm's commands print, as values. Pure functions."""

import datetime
import re
from typing import Dict, List, Optional


def parse_job(text: str) -> Dict[str, str]:
    """`scontrol show job -o` as a dictionary; the first KEY=VALUE of each key wins."""
    fields: Dict[str, str] = {}
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


def parse_time(text: str) -> Optional[float]:
    """Slurm's standard time as Unix time; None for Unknown, N/A, None or several lines."""
    match = re.match(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\s*$", text)
    return datetime.datetime.strptime(match.group(1), "%Y-%m-%dT%H:%M:%S").timestamp() if match else None


def limit_of(job: Dict[str, str]) -> Optional[float]:
    """StartTime + TimeLimit, Unix time. EndTime would not do: a scancel or a preemption changes it."""
    limit = parse_duration(job.get("TimeLimit", ""))
    start = parse_time(job.get("StartTime", ""))
    return None if limit is None or start is None else start + limit


def parse_duration(text: str) -> Optional[float]:
    """Seconds of [DAYS-]HH:MM:SS; None for anything else (UNLIMITED)."""
    match = re.match(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)\s*$", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(days * 86400 + hours * 3600 + minutes * 60 + seconds)


def preempts_by_qos(config: str) -> bool:
    """Whether `scontrol show config` names preempt/qos: GraceTime is then the QOS's, not the partition's."""
    return re.search(r"^PreemptType\s*=\s*preempt/qos\s*$", config, re.MULTILINE) is not None


def is_preempted(job: Dict[str, str]) -> bool:
    """Whether Slurm has preempted this very start of the job; an earlier start's time may still stand there."""
    preempted, started = parse_time(job.get("PreemptTime", "")), parse_time(job.get("StartTime", ""))
    return preempted is not None and (started is None or preempted >= started)


def seconds_of(config: str, key: str) -> Optional[float]:
    """A duration of `scontrol show config`: KillWait = 30 sec."""
    match = re.search(r"^{}\s*=\s*(\d+)\s*sec".format(re.escape(key)), config, re.MULTILINE)
    return float(match.group(1)) if match else None
