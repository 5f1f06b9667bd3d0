"""Where the files of a private cluster lie, and the rules which its directory must meet."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal.spec import Kind

SOCKET_PATH_MAX = 107
"""Bytes of a unix socket path, without its terminating zero (unix(7))."""

# The longest socket: slurmstepd's, named after node, job and step, for the highest job id of Slurm's default MaxJobId.
LONGEST_SOCKET = "spool/node001/node001_67043328.4294967294"

MARKER = ".r1hpc-rehearsal"

MARK = "R1HPC_REHEARSAL"
"""Environment variable of every daemon and client of a private cluster; its value is the cluster's identity."""

# What `clear` removes: all but the logs, for reading afterwards, and the shared directory, which holds people's runs.
TRANSIENT = ("etc", "run", "state", "spool", "tmp", "munge", "devices", "database")


@dataclass(frozen=True)
class Layout:
    """The directory of one private cluster."""

    directory: Path
    """Absolute, without symbolic links."""

    @classmethod
    def at(cls, directory: Path) -> Layout:
        """Return the layout of a directory as a person names it."""
        return cls(Path(os.path.realpath(directory.expanduser())))

    @property
    def identity(self) -> str:
        """The mark of this cluster's processes: a function of host and directory, so known without any record."""
        return hashlib.sha256(f"{socket.gethostname()}:{self.directory}".encode()).hexdigest()[:12]

    @property
    def cluster_name(self) -> str:
        """ClusterName of slurm.conf, unique to the directory."""
        return f"r1hpc-{self.identity}"

    @property
    def marks(self) -> frozenset[str]:
        """Environment entries by which a process is known to be the cluster's: our own, and what Slurm gives a task."""
        return frozenset({f"{MARK}={self.identity}", f"SLURM_CLUSTER_NAME={self.cluster_name}"})

    @property
    def spool(self) -> Path:
        """The parent of every node's SlurmdSpoolDir, the working directory of slurmd and slurmstepd."""
        return self.directory / "spool"

    @property
    def is_taken(self) -> bool:
        """Whether the directory is set aside for private clusters, so that their files may be removed."""
        return (self.directory / MARKER).exists()

    @property
    def slurm_conf(self) -> Path:
        """The generated slurm.conf; gres.conf and cgroup.conf lie beside it."""
        return self.directory / "etc" / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        """The socket of the private munged."""
        return self.directory / "run" / "munge.sock"

    @property
    def record(self) -> Path:
        """What is known of the running cluster (`ClusterRecord`).

        In a folder that `clear` removes, with what a killed publisher leaves beside it.
        """
        return self.directory / "run" / "cluster.json"

    @property
    def lock(self) -> Path:
        """Held while `up` or `down` is at work."""
        return self.directory / "lock"

    @property
    def shared(self) -> Path:
        """A directory that every node sees at the same path; kept by `down`."""
        return self.directory / "shared"

    def log(self, daemon: str) -> Path:
        """Return the log file of a daemon."""
        return self.directory / "log" / f"{daemon}.log"

    def console(self, daemon: str) -> Path:
        """Return the file that takes a daemon's standard output and error."""
        return self.directory / "log" / f"{daemon}.console"

    def check(self, kind: Kind) -> None:
        """Raise RehearsalError unless a cluster of this kind can live in the directory."""
        length = len(os.fsencode(self.directory)) + 1 + len(LONGEST_SOCKET)
        if length > SOCKET_PATH_MAX:
            raise RehearsalError(
                f"--dir {self.directory}: too long: {len(os.fsencode(self.directory))} bytes "
                f"+ {1 + len(LONGEST_SOCKET)} (/{LONGEST_SOCKET}) = {length}, "
                f"but a unix socket path has at most {SOCKET_PATH_MAX}; choose a shorter directory"
            )
        if kind is Kind.NAMESPACE and self.directory.is_relative_to("/tmp"):
            raise RehearsalError(
                f"--dir {self.directory}: lies under /tmp, which every namespace node replaces by its own; "
                "choose a directory elsewhere, or --kind loopback"
            )
        if self.directory.is_dir() and any(self.directory.iterdir()) and not self.is_taken:
            raise RehearsalError(
                f"--dir {self.directory}: holds files that are no private cluster's; choose an empty or new directory"
            )

    def create(self) -> None:
        """Make the directory and take it for private clusters."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / MARKER).touch()

    def populate(self, node_names: list[str]) -> None:
        """Make the folders that daemons expect to find; the logs of the cluster before this one go."""
        shutil.rmtree(self.directory / "log", ignore_errors=True)
        for name in ("etc", "run", "log", "state", "shared", "devices"):
            (self.directory / name).mkdir(exist_ok=True)
        (self.directory / "munge").mkdir(mode=0o700, exist_ok=True)
        for node in node_names:
            (self.directory / "spool" / node).mkdir(parents=True, exist_ok=True)
            (self.directory / "tmp" / node).mkdir(parents=True, exist_ok=True)
            # Sticky and open to all like /tmp: jobs of another user write there too.
            (self.directory / "tmp" / node).chmod(0o1777)

    def clear(self) -> None:
        """Remove what only a running cluster needs."""
        if not self.is_taken:
            return
        for name in TRANSIENT:
            shutil.rmtree(self.directory / name, ignore_errors=True)
