"""The private cluster as tests, drills and the command line use it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal import accounting
from r1hpc.rehearsal.bringup import BringUp, StepHook, sweep
from r1hpc.rehearsal.client import Client
from r1hpc.rehearsal.daemons import Starter
from r1hpc.rehearsal.layout import Layout
from r1hpc.rehearsal.namespace import namespaces_unavailable
from r1hpc.rehearsal.nodes import (
    link_name,
    power_off_loopback_node,
    power_off_namespace_node,
    start_loopback_nodes,
    start_namespace_nodes,
)
from r1hpc.rehearsal.ports import free_port_block
from r1hpc.rehearsal.processes import Stat, cluster_processes
from r1hpc.rehearsal.record import ClusterRecord, read_record
from r1hpc.rehearsal.spec import ClusterSpec, Kind
from r1hpc.rehearsal.topology import Node, plan_topology, ports_needed
from r1hpc.rehearsal.version import installed_version, require_programs

NAMESPACE_BASE_PORT = 6817
"""Slurm's own default: a namespace's ports are nobody else's."""

LOCK_DEADLINE_S = 10


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
        kind = resolve_kind(spec.kind)
        layout = Layout(spec.directory)
        layout.check(kind)
        version = installed_version()
        if spec.accounting:
            require_programs(accounting.PROGRAMS, accounting.PACKAGES)
        layout.create()
        with _locked(layout):
            if (running := _running(layout)) is not None:
                _require_same(running, spec)
                return cls(layout, running, Starter(layout))
            sweep(layout)
            started_at = time.monotonic()
            ports = nullcontext(NAMESPACE_BASE_PORT) if kind is Kind.NAMESPACE else free_port_block(ports_needed(spec))
            with ports as base_port:
                record = ClusterRecord(spec, kind, plan_topology(spec, kind, base_port))
                bring_up = BringUp(layout, record, version, on_step)
                try:
                    bring_up.run()
                    record.up_s = round(time.monotonic() - started_at, 2)
                    record.publish(layout)
                    on_step("up")
                except BaseException:
                    # Ctrl-C too: whoever stops `up` does not want half a cluster.
                    sweep(layout)
                    bring_up.starter.forget()
                    raise
            return cls(layout, record, bring_up.starter)

    @classmethod
    def attach(cls, directory: Path) -> RehearsalCluster:
        """Return the cluster that is up in a directory; RehearsalError when there is none."""
        layout = Layout(Path(os.path.realpath(directory.expanduser())))
        record = _running(layout)
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
        down(self._layout.directory)
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
        return cluster_processes(self._layout.identity, self._layout.directory / "spool")

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
            started = start_namespace_nodes(
                self._starter, self._layout, self._record.outer, [target], self.spec.share
            )
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
        while unready := {name: state for name, state in self.node_states().items() if name in nodes and not ready(state)}:
            if time.monotonic() > deadline:
                raise RehearsalError(f"after {deadline_s:g} s still: {unready}")
            time.sleep(0.1)

    def _node(self, name: str) -> Node:
        for node in self._record.topology.nodes:
            if node.name == name:
                return node
        raise RehearsalError(f"no node {name!r}: the cluster has {', '.join(self.node_names)}")


def down(directory: Path) -> bool:
    """Take down what is left of a cluster in a directory, in whatever state; return whether there was something."""
    layout = Layout(Path(os.path.realpath(directory.expanduser())))
    if not layout.is_taken:
        return False
    with _locked(layout):
        existed = layout.record.exists() or bool(cluster_processes(layout.identity, layout.directory / "spool"))
        sweep(layout)
    return existed


def resolve_kind(kind: Kind) -> Kind:
    """Return the kind that `auto` means here; RehearsalError when namespaces are asked for and impossible."""
    if kind is Kind.LOOPBACK:
        return kind
    problem = namespaces_unavailable() if os.geteuid() == 0 else "needs root"
    if problem is None:
        return Kind.NAMESPACE
    if kind is Kind.NAMESPACE:
        raise RehearsalError(f"--kind namespace: {problem}; --kind loopback needs no privilege")
    return Kind.LOOPBACK


def _running(layout: Layout) -> ClusterRecord | None:
    record = read_record(layout)
    if record is None or record.up_s is None:
        return None
    # A node that is off may be so on purpose; without one of the others there is no cluster.
    names = set(record.daemons) - set(record.topology.node_names)
    members = [record.daemons[name] for name in names] + ([record.outer.member] if record.outer else [])
    return record if all(member.alive() for member in members) else None


def _require_same(running: ClusterRecord, spec: ClusterSpec) -> None:
    if differences := running.spec.differences(spec):
        raise RehearsalError(
            f"a private cluster is up in {spec.directory} with another spec: {'; '.join(differences)}; "
            f"take it down first: python -m r1hpc.rehearsal down --dir {spec.directory}"
        )


@contextmanager
def _locked(layout: Layout) -> Iterator[None]:
    """Hold the directory's lock; the kernel drops it with the process."""
    deadline = time.monotonic() + LOCK_DEADLINE_S
    with open(layout.lock, "w") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RehearsalError(f"{layout.lock}: another `up` or `down` is at work there") from None
                time.sleep(0.05)
        yield
