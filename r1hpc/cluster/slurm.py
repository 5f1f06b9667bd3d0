"""Asking the site's Slurm: every call has a timeout, and its failure is told in words."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from r1hpc.cluster.requeue import parse_job
from r1hpc.errors import ClusterError

_KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT", "SLURM_JWT")
"""Which Slurm, and how it is reached."""
PROFILE_OPTIONS = ("account", "partition", "qos", "reservation", "constraint", "wckey", "clusters")
"""sbatch options that people set once in their profile, as SBATCH_ACCOUNT and so on. No other SBATCH_ variable is
passed on: SBATCH_EXPORT, SBATCH_SIGNAL or SBATCH_NO_REQUEUE would change what the jobs rely on."""
_STEERING = ("SQUEUE_", "SCONTROL_", "SCANCEL_", "SINFO_", "SACCT_", "SLURM_BITSTR_LEN")
"""Variables by which a profile would change the output that is parsed here, or make scancel ask back."""


@dataclass(frozen=True)
class QueuedJob:
    """One line of squeue."""

    job_id: str
    name: str
    state: str
    comment: str
    reason: str


@dataclass(frozen=True)
class JobElement:
    """A job, or one element of an array, as squeue shows it."""

    job_id: str
    """The array's id for an element."""
    index: int
    """Within the array; 0 for a job that is none."""
    state: str
    reason: str
    """None when there is none."""
    nodes: str


@contextmanager
def outside_any_job(settled: Collection[str] = ()) -> Iterator[None]:
    """Hide the variables of an enclosing allocation: sbatch would take them for options of the new job.

    Outside a job the SBATCH_ variables of PROFILE_OPTIONS stay, but for `settled`, the options that the job's own text
    names: sbatch lets the environment overrule the text.
    """
    inside = "SLURM_JOB_ID" in os.environ
    kept = set(_KEPT) | (
        set() if inside else {profile_variable(name) for name in PROFILE_OPTIONS if name not in settled}
    )
    own = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_")
    hidden = {name: value for name, value in os.environ.items() if name.startswith(own) and name not in kept}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def profile_variable(option: str) -> str:
    """The environment variable that sbatch takes an option from."""
    return f"SBATCH_{option.upper()}"


def user_name(uid: int) -> str:
    """For people; the number where nobody knows the name."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _whose(uid: int) -> tuple[str, ...]:
    return ("--me",) if uid == os.getuid() else ("-u", str(uid))


class SlurmClient:
    """The commands of one Slurm, found on PATH."""

    def __init__(self, timeout_s: float = 20.0) -> None:
        self._timeout_s = timeout_s

    def call(self, *argv: str, timeout_s: float | None = None) -> str:
        """Standard output of a Slurm command. Raises ClusterError with the command and what it said."""
        return self._run(argv, timeout_s or self._timeout_s).stdout

    def _run(self, argv: Sequence[str], limit_s: float) -> subprocess.CompletedProcess[str]:
        try:
            done = subprocess.run(
                argv, env=_plain_environment(), capture_output=True, text=True, timeout=limit_s, check=False
            )
        except FileNotFoundError:
            raise ClusterError(f"{argv[0]}: command not found; is Slurm installed here and on PATH?") from None
        except subprocess.TimeoutExpired:
            raise ClusterError(
                f"{' '.join(argv)}: no answer within {limit_s:g} s; slurmctld is down or very busy (try: scontrol ping)"
            ) from None
        if done.returncode != 0:
            raise ClusterError(f"{' '.join(argv)}: {(done.stderr or done.stdout).strip()}")
        return done

    def present(self) -> bool:
        """Whether sbatch is on PATH."""
        return shutil.which("sbatch") is not None

    def config(self) -> dict[str, str]:
        """`scontrol show config`; raises ClusterError when the controller does not answer."""
        return _settings(self.call("scontrol", "show", "config"))

    def partitions(self, names: str | None) -> list[dict[str, str]]:
        """The settings of `names` (comma-separated, as sbatch takes them), hidden partitions too.

        For None the default partition's, [] where there is none. Raises ClusterError naming those there are.
        """
        lines = self.call("scontrol", "-a", "show", "partition", "-o").splitlines()
        known = {fields["PartitionName"]: fields for fields in map(parse_job, lines) if "PartitionName" in fields}
        if names is None:
            return [fields for fields in known.values() if fields.get("Default") == "YES"]
        asked = [name for name in names.split(",") if name]
        missing = ", ".join(name for name in asked if name not in known)
        if missing:
            raise ClusterError(f"slurm.partition = {missing}: no such partition; there are {', '.join(known)}")
        return [known[name] for name in asked]

    def node_names(self) -> dict[str, str]:
        """NodeName of every known name of a node: NodeName, NodeHostName and NodeAddr."""
        names: dict[str, str] = {}
        for line in self.call("scontrol", "show", "node", "-o").splitlines():
            fields = parse_job(line)
            for key in ("NodeAddr", "NodeHostName", "NodeName"):
                if fields.get(key):
                    names[fields[key]] = fields["NodeName"]
        return names

    def jobs_of(self, uid: int) -> list[QueuedJob]:
        """A user's jobs in the queue, array elements apart. PrivateData may hide those of other users."""
        jobs = []
        text = self.call("squeue", *_whose(uid), "-a", "-h", "-r", "-o", "%i\x1f%j\x1f%T\x1f%k\x1f%r")
        for line in text.splitlines():
            fields = line.split("\x1f")
            if len(fields) == 5:
                jobs.append(QueuedJob(*fields))
        return jobs

    def elements_of(self, uid: int) -> list[JobElement]:
        """A user's jobs that Slurm remembers, ended ones too, array elements apart, in one call.

        PrivateData may hide those of other users.
        """
        elements = []
        text = self.call("squeue", *_whose(uid), "-a", "-h", "-r", "-t", "all", "-o", "%F\x1f%K\x1f%T\x1f%r\x1f%N")
        for line in text.splitlines():
            fields = line.split("\x1f")
            if len(fields) == 5:
                job_id, index, *rest = fields
                elements.append(JobElement(job_id, int(index) if index.isdigit() else 0, *rest))
        return elements

    def test_only(self, script: str) -> str:
        """What `sbatch --test-only` says: the expected start. Raises ClusterError with Slurm's reason."""
        return self._run(["sbatch", "--test-only", script], self._timeout_s).stderr.strip()

    def cancel(self, job_ids: Sequence[str]) -> None:
        """scancel exactly these jobs."""
        if job_ids:
            self.call("scancel", *job_ids)


def _plain_environment() -> dict[str, str]:
    """This process's environment, in which Slurm's commands print what this file parses."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(_STEERING)}
    return plain | {"SLURM_TIME_FORMAT": "standard"}


def _settings(text: str) -> dict[str, str]:
    """`scontrol show config` as a dictionary."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}
