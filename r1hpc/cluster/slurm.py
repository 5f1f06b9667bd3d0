"""Asking the site's Slurm: every call has a timeout, and its failure is told in words."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from r1hpc.cluster.requeue import parse_job
from r1hpc.errors import ClusterError

_INHERITED = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_")
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SLURM_JWT")


@dataclass(frozen=True)
class QueuedJob:
    """One line of squeue."""

    job_id: str
    name: str
    state: str
    comment: str
    reason: str


@contextmanager
def outside_any_job() -> Iterator[None]:
    """Hide the variables of an enclosing allocation: sbatch would take them for options of the new job."""
    hidden = {name: value for name, value in os.environ.items() if name.startswith(_INHERITED) and name not in _KEPT}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


class SlurmClient:
    """The commands of one Slurm, found on PATH."""

    def __init__(self, timeout_s: float = 20.0) -> None:
        self._timeout_s = timeout_s

    def call(self, *argv: str, timeout_s: float | None = None) -> str:
        """Standard output of a Slurm command. Raises ClusterError with the command and what it said."""
        limit = timeout_s or self._timeout_s
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=limit, check=False)
        except FileNotFoundError:
            raise ClusterError(f"{argv[0]}: command not found; is Slurm installed here and on PATH?") from None
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"{' '.join(argv)}: no answer within {limit:g} s; slurmctld is down or very busy (try: scontrol ping)"
            ) from None
        if done.returncode != 0:
            raise ClusterError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
        return done.stdout

    def present(self) -> bool:
        """Whether sbatch is on PATH."""
        return shutil.which("sbatch") is not None

    def config(self) -> dict[str, str]:
        """`scontrol show config`; raises ClusterError when the controller does not answer."""
        return _settings(self.call("scontrol", "show", "config"))

    def partition(self, name: str | None) -> dict[str, str]:
        """A partition's settings, the default partition's for None. Raises ClusterError naming those there are."""
        partitions = [parse_job(line) for line in self.call("scontrol", "show", "partition", "-o").splitlines()]
        for fields in partitions:
            if fields.get("PartitionName") == name or (name is None and fields.get("Default") == "YES"):
                return fields
        known = ", ".join(fields.get("PartitionName", "?") for fields in partitions)
        if name is None:
            raise ClusterError(f"this Slurm has no default partition: set slurm.partition to one of {known}")
        raise ClusterError(f"slurm.partition = {name}: no such partition; there are {known}")

    def node_names(self) -> dict[str, str]:
        """NodeName of every known name of a node: NodeName, NodeHostName and NodeAddr."""
        names: dict[str, str] = {}
        for line in self.call("scontrol", "show", "node", "-o").splitlines():
            fields = parse_job(line)
            for key in ("NodeAddr", "NodeHostName", "NodeName"):
                if fields.get(key):
                    names[fields[key]] = fields["NodeName"]
        return names

    def my_jobs(self) -> list[QueuedJob]:
        """The user's jobs in the queue, array elements apart."""
        jobs = []
        text = self.call("squeue", "--me", "-h", "-r", "-o", "%i\x1f%j\x1f%T\x1f%k\x1f%r")
        for line in text.splitlines():
            fields = line.split("\x1f")
            if len(fields) == 5:
                jobs.append(QueuedJob(*fields))
        return jobs

    def job(self, job_id: str) -> dict[str, str]:
        """`scontrol show job` of one job (the first element of an array); {} when Slurm has forgotten it."""
        try:
            return parse_job(self.call("scontrol", "show", "job", "-o", job_id))
        except ClusterError as error:
            if "Invalid job id" in str(error):
                return {}
            raise

    def array(self, job_id: str) -> list[dict[str, str]]:
        """`scontrol show job` of every element of a job; [] when Slurm has forgotten it."""
        try:
            return [parse_job(line) for line in self.call("scontrol", "show", "job", "-o", job_id).splitlines() if line]
        except ClusterError as error:
            if "Invalid job id" in str(error):
                return []
            raise

    def test_only(self, script: str) -> str:
        """What `sbatch --test-only` says: the expected start. Raises ClusterError with Slurm's reason."""
        try:
            done = subprocess.run(
                ["sbatch", "--test-only", script], capture_output=True, text=True, timeout=self._timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise ClusterError(f"sbatch --test-only: no answer within {self._timeout_s:g} s") from None
        if done.returncode != 0:
            raise ClusterError(f"sbatch --test-only: {done.stderr.strip()}")
        return done.stderr.strip()

    def cancel(self, job_ids: Sequence[str]) -> None:
        """scancel exactly these jobs."""
        if job_ids:
            self.call("scancel", *job_ids)


def _settings(text: str) -> dict[str, str]:
    """`scontrol show config` as a dictionary."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}
