"""What a private cluster is asked to be: size, kind and the Slurm timings that a drill turns."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from r1hpc.errors import RehearsalError

MAX_NODES = 200

MIN_CRED_EXPIRE_S = 5


class Kind(StrEnum):
    """How a node of the private cluster is made."""

    AUTO = "auto"
    """`NAMESPACE` for root where the kernel allows it, else `LOOPBACK`."""

    LOOPBACK = "loopback"
    """One slurmd a node on 127.0.0.(10+i): no privilege; hostname, /tmp and process ids are the host's."""

    NAMESPACE = "namespace"
    """Namespaces for each node (own address, hostname, /tmp, /dev/shm, processes), all inside one without uplink."""


def default_directory() -> Path:
    """Return the directory used when none is named: short, and outside /tmp, which every namespace node replaces."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "r1hpc" / "rehearsal"


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """A private cluster. Two specs that compare equal describe the same cluster."""

    directory: Path
    """Everything of the cluster lies here; one directory, one cluster."""

    nodes: int = 4
    """Number of nodes, named node01, node02, ..."""

    kind: Kind = Kind.AUTO
    """How nodes are made."""

    gpus_per_node: int = 8
    """Logical GPUs of a node: Slurm counts and hands them out, nothing is behind them."""

    cpus_per_node: int = 128
    """CPUs that Slurm believes a node to have, whatever the host has; by default those of a node with 8 H100."""

    memory_mib: int = 2_000_000
    """Memory in MiB that Slurm believes a node to have, whatever the host has."""

    accounting: bool = False
    """Start slurmdbd on a private MariaDB, so that `sacct` answers (about 10 s more)."""

    share: tuple[Path, ...] = ()
    """Directories under /tmp that namespace nodes see at the same path."""

    grace_s: int = 10
    """GraceTime of partition `low`: seconds between the preemption of a job and its SIGTERM."""

    kill_wait_s: int = 5
    """KillWait: seconds between SIGTERM and SIGKILL."""

    slurmd_timeout_s: int = 15
    """SlurmdTimeout: seconds without an answer after which a node is DOWN and its jobs are requeued."""

    message_timeout_s: int = 10
    """MessageTimeout: seconds that Slurm waits for an answer; a dead node is asked more than once before it is DOWN."""

    cred_expire_s: int = 10
    """Seconds for which a requeued job waits before it may start again; at least 5 (Slurm's default is 120)."""

    preempt_send_user_signal: bool = False
    """Send a job's --signal when it is preempted, as some sites do."""

    max_array_size: int = 1001
    """MaxArraySize: one more than the highest index of an array."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", Path(os.path.realpath(self.directory.expanduser())))
        object.__setattr__(self, "share", tuple(Path(os.path.realpath(path)) for path in self.share))
        object.__setattr__(self, "kind", Kind(self.kind))
        if not 1 <= self.nodes <= MAX_NODES:
            raise RehearsalError(f"--nodes {self.nodes}: a private cluster has 1 to {MAX_NODES} nodes")
        if self.cred_expire_s < MIN_CRED_EXPIRE_S:
            raise RehearsalError(
                f"--cred-expire-s {self.cred_expire_s}: at least {MIN_CRED_EXPIRE_S}: "
                "Slurm takes less for a mistake, and then makes requeued jobs wait for 120 s"
            )
        if self.gpus_per_node < 1:
            raise RehearsalError(f"--gpus-per-node {self.gpus_per_node}: a node has at least 1 logical GPU")
        for path in self.share:
            if not path.is_dir() or path == Path("/tmp"):
                raise RehearsalError(f"--share {path}: must be an existing directory, and not /tmp itself")

    def to_json(self) -> dict[str, Any]:
        """Return the spec as plain JSON values."""
        values = asdict(self)
        return values | {"directory": str(self.directory), "share": [str(path) for path in self.share]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ClusterSpec:
        """Rebuild a spec that `to_json` wrote."""
        share = tuple(Path(path) for path in values["share"])
        return cls(**values | {"directory": Path(values["directory"]), "share": share})

    def differences(self, other: ClusterSpec) -> list[str]:
        """Return `name: mine -> theirs` for every field that differs."""
        mine, theirs = self.to_json(), other.to_json()
        return [f"{name}: {mine[name]} -> {theirs[name]}" for name in mine if mine[name] != theirs[name]]
