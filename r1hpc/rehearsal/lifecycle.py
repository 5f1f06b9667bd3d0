"""Up and down as a whole: one at a time in a directory, all or nothing."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal import accounting
from r1hpc.rehearsal.bringup import BringUp, StepHook
from r1hpc.rehearsal.daemons import Starter
from r1hpc.rehearsal.layout import Layout
from r1hpc.rehearsal.namespace import namespaces_unavailable
from r1hpc.rehearsal.ports import free_port_block
from r1hpc.rehearsal.processes import cluster_processes, end_all
from r1hpc.rehearsal.record import ClusterRecord, read_record
from r1hpc.rehearsal.spec import ClusterSpec, Kind
from r1hpc.rehearsal.topology import plan_topology, ports_needed
from r1hpc.rehearsal.version import installed_version, require_programs

NAMESPACE_BASE_PORT = 6817
"""Slurm's own default: the ports of a namespace are nobody else's."""

LOCK_DEADLINE_S = 10


def bring_up(layout: Layout, spec: ClusterSpec, on_step: StepHook) -> tuple[ClusterRecord, Starter]:
    """Bring a cluster up, or take the one of the same spec that is up; see `RehearsalCluster.up`."""
    kind = resolve_kind(spec.kind)
    layout.check(kind)
    version = installed_version()
    if spec.accounting:
        require_programs(accounting.PROGRAMS, accounting.PACKAGES)
    layout.create()
    with _locked(layout):
        if (running := running_record(layout)) is not None:
            _require_same(running, spec)
            return running, Starter(layout)
        _sweep(layout)
        started_at = time.monotonic()
        ports = nullcontext(NAMESPACE_BASE_PORT) if kind is Kind.NAMESPACE else free_port_block(ports_needed(spec))
        with ports as base_port:
            record = ClusterRecord(spec, kind, plan_topology(spec, kind, base_port))
            steps = BringUp(layout, record, version, on_step)
            try:
                steps.run()
                record.up_s = round(time.monotonic() - started_at, 2)
                record.publish(layout)
                on_step("up")
            except BaseException:
                # Ctrl-C too: whoever stops `up` does not want half a cluster.
                _sweep(layout)
                steps.starter.forget()
                raise
        return record, steps.starter


def take_down(layout: Layout) -> bool:
    """End what is left of a cluster, in whatever state it is; return whether there was something."""
    if not layout.is_taken:
        return False
    with _locked(layout):
        existed = layout.record.exists() or bool(cluster_processes(layout))
        _sweep(layout)
    return existed


def running_record(layout: Layout) -> ClusterRecord | None:
    """Return the record of a cluster that is up, None when it never was or is no more."""
    record = read_record(layout)
    if record is None or record.up_s is None:
        return None
    # A node that is off may be so on purpose; without one of the others there is no cluster.
    names = set(record.daemons) - set(record.topology.node_names)
    members = [record.daemons[name] for name in names] + ([record.outer.member] if record.outer else [])
    return record if all(member.alive() for member in members) else None


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


def _sweep(layout: Layout) -> None:
    # Namespaces, with their links, routes and mounts, go with the processes in them.
    end_all(lambda: cluster_processes(layout))
    layout.clear()


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
                    raise RehearsalError(
                        f"{layout.lock}: another `up` or `down` has been at work there for {LOCK_DEADLINE_S} s"
                    ) from None
                time.sleep(0.05)
        yield
