"""The private cluster as tests, drills and the command line use it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal.bringup import StepHook
from r1hpc.rehearsal.client import Client
from r1hpc.rehearsal.daemons import Starter
from r1hpc.rehearsal.layout import Layout
from r1hpc.rehearsal.lifecycle import bring_up, running_record, take_down
from r1hpc.rehearsal.nodes import (
    link_name,
    power_off_loopback_node,
    power_off_namespace_node,
    start_loopback_nodes,
    start_namespace_nodes,
)
from r1hpc.rehearsal.processes import Stat, cluster_processes
from r1hpc.rehearsal.record import ClusterRecord
from r1hpc.rehearsal.spec import ClusterSpec, Kind
from r1hpc.rehearsal.topology import Node


class RehearsalCluster:
    """A private Slurm that is up. Made by `up` or `attach`; any process of its user may hold one."""

    def __init__(self, layout: Layout, record: ClusterRecord, starter: Starter) -> None:
        self._layout = layout
        self._record = record
        self._starter = starter
        self._client = Client(layout, record.outer)

    @classmethod
    def up(cls, spec: ClusterSpec, on_step: StepHook = lambda _: None) -> RehearsalCluster:
        """Bring a cluster up and return it with every node idle; one of the same spec that is up already is taken.

        `on_step` is told the name of each step that is done. Raises RehearsalError, with nothing left behind, when
        it cannot come up, or when the directory's cluster is up with another spec.
        """
        layout = Layout(spec.directory)
        record, starter = bring_up(layout, spec, on_step)
        return cls(layout, record, starter)

    @classmethod
    def attach(cls, directory: Path) -> RehearsalCluster:
        """Return the cluster that is up in a directory; RehearsalError when there is none."""
        layout = Layout.at(directory)
        record = running_record(layout)
        if record is None:
            raise RehearsalError(
                f"no private cluster is up in {layout.directory}: python -m r1hpc.rehearsal up --dir {layout.directory}"
            )
        return cls(layout, record, Starter(layout))

    @property
    def spec(self) -> ClusterSpec:
        """What the cluster was asked to be."""
        return self._record.spec

    @property
    def kind(self) -> Kind:
        """What its nodes are: `LOOPBACK` or `NAMESPACE`."""
        return self._record.kind

    @property
    def name(self) -> str:
        """Its ClusterName."""
        return self._layout.cluster_name

    @property
    def identity(self) -> str:
        """The value of R1HPC_REHEARSAL in the environment of its processes."""
        return self._layout.identity

    @property
    def node_names(self) -> list[str]:
        """node01, node02, ..."""
        return self._record.topology.node_names

    @property
    def node_addresses(self) -> dict[str, str]:
        """The address of every node by name."""
        return {node.name: node.address for node in self._record.topology.nodes}

    @property
    def shared_dir(self) -> Path:
        """A directory that every node and the caller see at the same path; it outlives `down`."""
        return self._layout.shared

    @property
    def log_dir(self) -> Path:
        """The daemons' logs; they outlive `down`."""
        return self._layout.directory / "log"

    @property
    def up_s(self) -> float:
        """Seconds that it took to come up."""
        assert self._record.up_s is not None, "a cluster that is up has its time recorded"
        return self._record.up_s

    def down(self) -> None:
        """End every process of the cluster and remove its transient files."""
        take_down(self._layout)
        self._starter.forget()

    def environment(self) -> dict[str, str]:
        """Return the environment of a client command: this process's, without any other Slurm's variables."""
        return self._client.environment()

    def command(self, argv: Sequence[str]) -> list[str]:
        """Return `argv` as it must be started, with `environment()`, to run where the cluster is."""
        return self._client.command(argv)

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
        """Run a command against the cluster: see `Client.run`."""
        return self._client.run(argv, timeout_s=timeout_s, check=check, cwd=cwd, env=env, text=text)

    def popen(
        self,
        argv: Sequence[str],
        *,
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start a command against the cluster: see `Client.popen`."""
        return self._client.popen(argv, cwd=cwd, env=env, **options)

    def cancel(self, *job_ids: int | str) -> None:
        """Cancel jobs, once it is sure that they are this cluster's."""
        self._client.cancel(job_ids)

    def node_states(self) -> dict[str, str]:
        """Return Slurm's state of every node, e.g. {"node01": "idle"}."""
        return self._client.node_states()

    def processes(self) -> dict[int, Stat]:
        """Return every live process of the cluster by pid, those of its jobs and clients included."""
        return cluster_processes(self._layout)

    def power_off(self, node: str) -> None:
        """Take a node's power: its processes are gone at once, and Slurm is not told.

        On loopback that is SIGKILL for slurmd and all that it runs; what they did to the host's /tmp stays.
        """
        target = self._node(node)
        if self._record.outer is None:
            power_off_loopback_node(self._layout, target)
        else:
            power_off_namespace_node(self._record.outer, target, self._record.daemons[node])
        self._starter.forget()

    def power_on(self, node: str) -> None:
        """Start a node that was powered off; Slurm takes it back when its slurmd registers."""
        target = self._node(node)
        if self._record.daemons[node].alive():
            raise RehearsalError(f"{node} is powered on")
        self._starter.outer = self._record.outer
        if self._record.outer is None:
            started = start_loopback_nodes(self._starter, self._layout, [target])
        else:
            started = start_namespace_nodes(self._starter, self._layout, self._record.outer, [target], self.spec.share)
        self._record.daemons.update(started)
        self._record.publish(self._layout)

    def partition(self, node: str, up: bool) -> None:
        """Cut a node off from the network, or connect it again, while it goes on running. Namespace kind only."""
        target = self._node(node)
        if self._record.outer is None:
            raise RehearsalError("loopback nodes share one network: partition needs --kind namespace (as root)")
        self._record.outer.ip([f"link set {link_name(target)} {'up' if up else 'down'}"])

    def wait_nodes(self, ready: Callable[[str], bool], nodes: Sequence[str], deadline_s: float) -> None:
        """Wait until the state of each of `nodes` satisfies `ready`; RehearsalError names the states otherwise."""
        deadline = time.monotonic() + deadline_s
        while unready := {
            name: state for name, state in self.node_states().items() if name in nodes and not ready(state)
        }:
            if time.monotonic() > deadline:
                raise RehearsalError(f"after {deadline_s:g} s still: {unready}")
            time.sleep(0.1)

    def _node(self, name: str) -> Node:
        for node in self._record.topology.nodes:
            if node.name == name:
                return node
        raise RehearsalError(f"no node {name!r}: the cluster has {', '.join(self.node_names)}")
