"""`up`, step by step; it may be stopped between any two of them, and `down` finds what it left."""

from __future__ import annotations

import os
import pwd
import select
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal import accounting
from r1hpc.rehearsal.client import Client
from r1hpc.rehearsal.daemons import Starter
from r1hpc.rehearsal.layout import Layout
from r1hpc.rehearsal.namespace import BRIDGE, READY, Namespace, hold_command
from r1hpc.rehearsal.nodes import start_loopback_nodes, start_namespace_nodes
from r1hpc.rehearsal.record import ClusterRecord
from r1hpc.rehearsal.slurm_conf import ConfInputs, write_conf
from r1hpc.rehearsal.spec import Kind
from r1hpc.rehearsal.topology import NAMESPACE_NETWORK
from r1hpc.rehearsal.version import SlurmVersion

DAEMON_DEADLINE_S = 30
NODES_DEADLINE_S = 60

StepHook = Callable[[str], None]
"""Called with the name of each step of `up` when it is done."""


class BringUp:
    """Brings one cluster up. What it starts carries the cluster's mark, and so is found again without it."""

    def __init__(self, layout: Layout, record: ClusterRecord, version: SlurmVersion, on_step: StepHook) -> None:
        self._layout = layout
        self._record = record
        self._version = version
        self._on_step = on_step
        self._user = pwd.getpwuid(os.geteuid()).pw_name
        self.starter = Starter(layout)

    def run(self) -> None:
        """Take every step; afterwards every node is idle."""
        self._write_files()
        self._step("files")
        if self._record.kind is Kind.NAMESPACE:
            self._make_namespace()
            self._step("namespace")
            self._make_bridge()
            self._step("bridge")
        client = Client(self._layout, self._record.outer)
        self._start_munged()
        self._step("munged")
        if self._record.spec.accounting:
            self._start_accounting(client)
        self._start_slurmctld()
        self._step("slurmctld")
        self._start_nodes()
        self._step("nodes")
        self._wait_idle(client)

    def _step(self, name: str) -> None:
        self._record.publish(self._layout)
        self._on_step(name)

    def _write_files(self) -> None:
        record = self._record
        self._layout.populate(record.topology.node_names)
        inputs = ConfInputs(
            spec=record.spec,
            kind=record.kind,
            layout=self._layout,
            topology=record.topology,
            version=self._version,
            host_name=socket.gethostname().partition(".")[0],
            user=self._user,
            first_job_id=_first_job_id(),
        )
        write_conf(inputs)
        _write_name_service(self._layout.slurm_conf.parent, inputs)
        _write_munge_key(self._layout.directory / "munge" / "munge.key")

    def _make_namespace(self) -> None:
        etc = self._layout.slurm_conf.parent
        with self._layout.console("namespace").open("a") as console:
            holder = self.starter.spawn(
                "namespace", hold_command(str(etc)), self._layout.directory, stdout=subprocess.PIPE, stderr=console
            )
        assert holder.stdout is not None
        readable, _, _ = select.select([holder.stdout], [], [], DAEMON_DEADLINE_S)
        if not readable or holder.stdout.readline() != READY:
            raise RehearsalError(f"the network namespace was not made\n{self.starter.last_words('namespace')}")
        holder.stdout.close()
        self._record.outer = self.starter.outer = Namespace.of(holder.pid)

    def _make_bridge(self) -> None:
        outer = self._record.outer
        assert outer is not None
        outer.ip(["link set lo up"])
        address = f"{self._record.topology.controller_address}/{NAMESPACE_NETWORK.prefixlen}"
        outer.ip([f"link add {BRIDGE} type bridge", f"addr add {address} dev {BRIDGE}", f"link set {BRIDGE} up"])

    def _start_munged(self) -> None:
        directory, munge_socket = self._layout.directory, self._layout.munge_socket
        self._record.daemons["munged"] = self.starter.start(
            "munged",
            [
                *("munged", "--foreground", "--force", "--num-threads=2"),
                *(f"--socket={munge_socket}", f"--key-file={directory}/munge/munge.key"),
                *(f"--seed-file={directory}/munge/munged.seed", f"--pid-file={directory}/run/munged.pid"),
                f"--log-file={self._layout.log('munged')}",
            ],
        )
        self.starter.wait("munged makes its socket", munge_socket.is_socket, ["munged"], DAEMON_DEADLINE_S)

    def _start_accounting(self, client: Client) -> None:
        record = self._record
        record.daemons["mariadbd"] = accounting.start_database(
            self.starter, client, self._layout, record.topology, self._user
        )
        self._step("mariadbd")
        record.daemons["slurmdbd"] = accounting.start_dbd(self.starter, client, record.topology)
        self._step("slurmdbd")
        accounting.register_cluster(client, self._layout, self._user)

    def _start_slurmctld(self) -> None:
        self._record.daemons["slurmctld"] = self.starter.start("slurmctld", ["slurmctld", "-D"])
        port = self._record.topology.controller_port
        # Clients and slurmd that come too early would wait for seconds before they try again.
        self.starter.wait_listening("slurmctld", port, DAEMON_DEADLINE_S)

    def _start_nodes(self) -> None:
        record = self._record
        nodes = record.topology.nodes
        if record.outer is None:
            started = start_loopback_nodes(self.starter, self._layout, nodes)
        else:
            started = start_namespace_nodes(self.starter, self._layout, record.outer, nodes, record.spec.share)
        record.daemons.update(started)

    def _wait_idle(self, client: Client) -> None:
        names = self._record.topology.node_names
        waiting: set[str] = set(names)

        def all_idle() -> bool:
            try:
                states = client.node_states()
            except RehearsalError:
                return False  # slurmctld is busy, or gone, which the wait notices itself
            waiting.intersection_update(name for name in names if states.get(name) != "idle")
            return not waiting

        try:
            self.starter.wait("every node is idle", all_idle, ["slurmctld", *names], NODES_DEADLINE_S)
        except RehearsalError as error:
            idle = len(names) - len(waiting)
            missing = ", ".join(sorted(waiting))
            raise RehearsalError(f"{idle} of {len(names)} nodes idle (missing {missing}): {error}") from error


def _write_name_service(etc: Path, inputs: ConfInputs) -> None:
    """Write the hosts and nsswitch files that namespace nodes see: names come from the file, nobody is asked."""
    topology = inputs.topology
    lines = ["127.0.0.1 localhost", f"{topology.controller_address} {inputs.host_name} {socket.gethostname()}"]
    lines += [f"{node.address} {node.name}" for node in topology.nodes]
    (etc / "hosts").write_text("\n".join(lines) + "\n")
    system = Path("/etc/nsswitch.conf")
    kept = system.read_text().splitlines() if system.exists() else []
    databases = [line for line in kept if not line.startswith("hosts:")]
    (etc / "nsswitch.conf").write_text("\n".join([*databases, "hosts: files"]) + "\n")


def _write_munge_key(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(os.urandom(128))


def _first_job_id() -> int:
    # Seconds of the clock, within Slurm's default MaxJobId: files named after a job id (submitit's pickles) of two
    # clusters that use one folder must not be taken for each other's.
    return 1 + int(time.time()) % 60_000_000
