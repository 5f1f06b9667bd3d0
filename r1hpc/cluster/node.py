"""What every agent knows of its node."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from r1hpc.cluster.hosts import ClusterHost
from r1hpc.cluster.launch import Launch
from r1hpc.cluster.processes import ATTEMPT, NODE, RUN
from r1hpc.rundir import AttemptDir, RunDir

TICK_S = 0.1
"""Pause of an agent's loop: signals, children and messages are noticed within it."""
ROLL_CALL_S = 45.0
"""At least so long the agents wait for each other; a node that died at the launch is then named."""


@dataclass(frozen=True)
class Node:
    """One agent's view: the launch, its own host, where things go, who asked it to stop."""

    run: RunDir
    attempt: AttemptDir
    launch: Launch
    host: ClusterHost
    until: str
    """bring-up, canary or end"""
    inherited: Mapping[str, str]
    """The environment that the agent was started with."""
    stop_requests: list[str]
    """Names of the signals that came; the handler appends, nobody else writes."""

    @property
    def mark(self) -> str:
        """R1HPC_NODE of everything that this agent starts; no other run's or attempt's agent has the same.

        The attempt's key alone would not do: every run without a scheduler begins with local-r0.
        """
        path = hashlib.sha256(str(self.attempt.root.absolute()).encode()).hexdigest()[:8]
        return f"{self.launch.run_id}/{self.attempt.root.name}-{path}/{self.host.name}"

    @property
    def marks(self) -> dict[str, str]:
        """The environment by which a leftover process is told from a stranger's."""
        return {RUN: self.launch.run_id, ATTEMPT: str(self.attempt.root), NODE: self.mark}

    @property
    def roll_call_s(self) -> float:
        """In this time every agent must have answered. Where each task unpacks a container they start minutes apart."""
        return max(ROLL_CALL_S, self.launch.bring_up_timeout_s / 2)

    @property
    def roll_call(self) -> tuple[str, int]:
        """Where the head agent listens."""
        return self.launch.head.address, self.launch.ports(self.launch.head).roll_call
