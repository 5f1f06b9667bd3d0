"""Slurm's commands from the batch host: each call has a timeout, and its failure is told on standard error."""

import os
import shutil
import subprocess
import sys
import time
from typing import Dict, List, Optional, Set

from r1hpc.cluster.requeue.texts import parse_job

CALL_TIMEOUT_S = 20
"""Seconds that one call may take."""
PATIENCE_S = 300
"""Seconds for which a controller that does not answer is asked again before a person has to look."""
PAUSE_S = 5
"""Seconds between two tries."""


def call(argv: List[str]) -> Optional[str]:
    """Standard output of a Slurm command, or None when it failed or took too long."""
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


def call_patiently(argv: List[str], patience_s: float) -> Optional[str]:
    """call, again and again while it fails: a controller that restarts must not cost a run its place."""
    deadline = time.time() + patience_s
    while True:
        answer = call(argv)
        if answer is not None or time.time() >= deadline or shutil.which(argv[0]) is None:
            return answer
        time.sleep(PAUSE_S)


def show_job(job_id: str, patience_s: float = 0) -> Dict[str, str]:
    """The fields of a job; {} when Slurm does not say."""
    return parse_job(call_patiently(["scontrol", "show", "job", "-o", job_id], patience_s) or "")


def excluded_nodes(job_id: str) -> List[str]:
    """The names in the job's ExcNodeList."""
    value = show_job(job_id).get("ExcNodeList", "(null)")
    return [] if value == "(null)" else (call(["scontrol", "show", "hostnames", value]) or "").split()


def partition_nodes(job_id: str) -> Set[str]:
    """The nodes that the job could run on at all; empty when Slurm does not say."""
    partition = show_job(job_id).get("Partition")
    return set((call(["sinfo", "-h", "-p", partition, "-N", "-o", "%N"]) or "").split()) if partition else set()
