"""Whether Slurm would take the jobs, asked before the first of them is queued."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from r1hpc.cluster.slurm import SlurmClient, profile_variable
from r1hpc.errors import ClusterError
from r1hpc.submit.requests import StageJob

_NOT_NOW = re.compile(
    r"Requested node configuration is not available|Required nodes? not available|ReqNodeNotAvail|"
    r"Nodes required for job are DOWN|Requested nodes are busy",
    re.IGNORECASE,
)
"""What --test-only says of a job that sbatch would queue while nodes are down, drained or reserved."""


def refusal(job: StageJob, script: Path, client: SlurmClient, say: Callable[[str], None]) -> str | None:
    """Why this Slurm will never run the job; None when it would queue it. Says when it expects to start it.

    `sbatch --test-only` also refuses what sbatch takes and starts once enough nodes are back: that is only said. What
    no node can ever give (too many GPUs) looks the same here, and is refused by sbatch itself.
    """
    try:
        answer = client.test_only(str(script))
    except ClusterError as error:
        if not _NOT_NOW.search(str(error)):
            return str(error)
        nodes, partition = int(job.parameters.get("nodes", 1)), _partition(job)
        room = most_nodes(client, partition)
        where = f"partition {partition}" if partition else "the default partition"
        if room is not None and room < nodes:
            return f"{error}: {nodes} nodes are asked for, a job of {where} may have {room}"
        say(f"note: stage {job.stage.name} cannot start now, enough nodes are down, drained or reserved: {error}")
        return None
    start = re.search(r"to start at (\S+)", answer)
    if start:
        say(f"{job.stage.name}: Slurm expects to start it at {start[1]}, if nothing comes before it")
    return None


def most_nodes(client: SlurmClient, names: str | None) -> int | None:
    """The most nodes that one job may ever have in any of these partitions; None when Slurm does not say."""
    rooms = []
    for fields in client.partitions(names):
        limits = [fields[key] for key in ("TotalNodes", "MaxNodes") if fields.get(key, "").isdigit()]
        rooms += [min(map(int, limits))] if limits else []
    return max(rooms, default=None)


def _partition(job: StageJob) -> str | None:
    """As sbatch takes it: slurm.extra, slurm.partition, the user's profile."""
    extra: dict[str, str] = job.parameters.get("additional_parameters", {})
    return extra.get("partition") or job.parameters.get("partition") or os.environ.get(profile_variable("partition"))
