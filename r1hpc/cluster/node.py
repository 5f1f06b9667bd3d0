"""What every agent knows of its node, and what it leaves behind when the attempt ends."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from r1hpc.cluster.hosts import ClusterHost
from r1hpc.cluster.launch import Launch
from r1hpc.cluster.processes import ATTEMPT, NODE, RUN
from r1hpc.rundir import AttemptDir, RunDir

TICK_S = 0.1
"""Pause of an agent's loop: signals, children and messages are noticed within it."""
ROLL_CALL_S = 45.0
"""In this time every agent must have answered; a node that died at the launch is then named."""
_KEPT_LOG_BYTES = 1 << 20


@dataclass(frozen=True)
class Node:
    """One agent's view: the launch, its own host, where things go, who asked it to stop."""

    run: RunDir
    attempt: AttemptDir
    launch: Launch
    host: ClusterHost
    until: str
    """bring-up or end"""
    inherited: Mapping[str, str]
    """The environment that the agent was started with."""
    stop_requests: list[str]
    """Names of the signals that came; the handler appends, nobody else writes."""

    @property
    def mark(self) -> str:
        """R1HPC_NODE of everything that this agent starts."""
        return f"{self.attempt.root.name}/{self.host.name}"

    @property
    def marks(self) -> dict[str, str]:
        """The environment by which a leftover process is told from a stranger's."""
        return {RUN: self.launch.run_id, ATTEMPT: str(self.attempt.root), NODE: self.mark}

    @property
    def roll_call(self) -> tuple[str, int]:
        """Where the head agent listens."""
        return self.launch.head.address, self.launch.ports(self.launch.head).roll_call


def keep_ray_logs(temp_dir: Path, target: Path) -> None:
    """Copy the ends of Ray's log files out of the node's temporary directory, for a person to read."""
    logs = temp_dir / "session_latest" / "logs"
    for source in sorted(logs.glob("*")):
        if not source.is_file() or source.stat().st_size == 0:
            continue
        target.mkdir(parents=True, exist_ok=True)
        with open(source, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - _KEPT_LOG_BYTES))
            (target / source.name).write_bytes(stream.read())


def remove_temp_dir(temp_dir: Path) -> None:
    """Remove Ray's directory; what another user put there in spite of mode 700 stays."""
    shutil.rmtree(temp_dir, ignore_errors=True)
