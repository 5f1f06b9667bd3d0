"""Slurm's client commands against the private cluster, and against nothing else."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal.layout import MARK, Layout
from r1hpc.rehearsal.namespace import Namespace

# Variables by which an enclosing job or a user's profile would steer a Slurm command or a daemon.
SLURM_VARIABLE = re.compile(
    r"(SLURM|SLURMD|SLURMCTLD|SLURMDBD|SBATCH|SALLOC|SRUN|SQUEUE|SINFO|SACCT|SACCTMGR|SCANCEL|SCONTROL|SPRIO|SSHARE"
    r"|SSTAT|SREPORT|SDIAG|SCRON|SCRONTAB|SATTACH|STRIGGER|MUNGE|PMI|PMIX|PALS)_.*"
)

QUERY_TIMEOUT_S = 5
"""A client blocks for 10 s and more when no slurmctld answers."""


def private_environment(layout: Layout, base: Mapping[str, str]) -> dict[str, str]:
    """Return `base` without any variable of another Slurm, and with those of the private one."""
    kept = {name: value for name, value in base.items() if not SLURM_VARIABLE.fullmatch(name)}
    return kept | {"SLURM_CONF": str(layout.slurm_conf), MARK: layout.identity}


class Client:
    """Runs commands where the cluster is: inside its namespace when it has one, with its slurm.conf."""

    def __init__(self, layout: Layout, outer: Namespace | None) -> None:
        self._layout = layout
        self._outer = outer

    def environment(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of a client command."""
        return private_environment(self._layout, os.environ) | dict(extra or {})

    def command(self, argv: Sequence[str], cwd: Path | str | None = None) -> list[str]:
        """Return `argv` as it must be started; `scancel` only once the cluster that answers is the private one."""
        if not argv:
            raise RehearsalError("no command given to run against the private cluster")
        if Path(argv[0]).name == "scancel":
            self.require_own_cluster()
        return self._wrap(argv, cwd)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 120,
        check: bool = False,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        text: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end and return its status and output; `env` adds variables, `text` is its input.

        Raises RehearsalError when it takes longer than `timeout_s`, or with `check` when it fails.
        """
        try:
            result = subprocess.run(
                self.command(argv, cwd),
                env=self.environment(env),
                input=text,
                stdin=subprocess.DEVNULL if text is None else None,
                capture_output=True,
                text=True,
                timeout=timeout_s,
            )
        except subprocess.TimeoutExpired as error:
            raise RehearsalError(f"{' '.join(argv)}: no end after {timeout_s:g} s") from error
        if check and result.returncode != 0:
            raise RehearsalError(f"{' '.join(argv)}: exit {result.returncode}: {result.stderr.strip()}")
        result.args = list(argv)  # what was asked for, not how it got into the namespace
        return result

    def popen(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start a command and return it; `options` go to subprocess.Popen. Its pid is the command's own."""
        return subprocess.Popen(self.command(argv, cwd), env=self.environment(env), text=True, **options)

    def query(self, argv: Sequence[str]) -> str:
        """Return what a short read-only command prints; RehearsalError when it fails."""
        return self.run(argv, timeout_s=QUERY_TIMEOUT_S, check=True).stdout

    def require_own_cluster(self) -> None:
        """Raise RehearsalError unless the slurmctld that answers is the private one."""
        config = self.query(["scontrol", "show", "config"])
        found = re.search(r"^ClusterName\s*=\s*(\S+)", config, re.MULTILINE)
        name = found[1] if found else "(none)"
        if name != self._layout.cluster_name:
            raise RehearsalError(
                f"the Slurm that answers is {name!r}, not {self._layout.cluster_name!r}: nothing is cancelled there"
            )

    def cancel(self, job_ids: Sequence[int | str]) -> None:
        """Cancel jobs of the private cluster."""
        if job_ids:
            self.run(["scancel", *map(str, job_ids)], timeout_s=QUERY_TIMEOUT_S, check=True)

    def node_states(self) -> dict[str, str]:
        """Return Slurm's state of every node, e.g. {"node01": "idle"}."""
        lines = self.query(["sinfo", "--noheader", "--Node", "--format=%N %T"]).splitlines()
        # A node stands there once for each partition.
        return dict(line.split(maxsplit=1) for line in lines)

    def _wrap(self, argv: Sequence[str], cwd: Path | str | None) -> list[str]:
        if self._outer is not None:
            return self._outer.wrap(argv, str(Path(cwd or Path.cwd()).absolute()))
        directory = [] if cwd is None else ["env", "-C", str(cwd)]
        return [*directory, *argv]
