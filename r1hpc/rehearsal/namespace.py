"""The outer network namespace: made first, without uplink, and the only place where an address is ever added.

It lives by one process, the holder: when the processes of the cluster are gone the kernel removes the namespace with
its links, routes and mounts, so that nothing has to be undone on the host.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal.processes import ProcessId, network_namespace

BRIDGE = "r1br0"

CLUSTER_LINKS = ("bridge", "veth")

# Runs inside: refuse when the namespace is not the recorded one, else become the command in the wanted directory.
ENTER = """
[ "$(readlink /proc/self/ns/net)" = "$1" ] || { echo "r1hpc: not in network namespace $1: refusing" >&2; exit 125; }
cd "$2" || exit 125
shift 2
exec "$@"
"""

# The holder. Names resolve from a private hosts file alone; $1 is the folder with the files. It mounts them itself:
# only now is it sure that `unshare` has cut the new mount namespace off from the host's.
HOLD = """
set -eu
mount --bind "$1/hosts" /etc/hosts
[ ! -e /etc/nsswitch.conf ] || mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf
[ ! -e /etc/resolv.conf ] || mount --bind /dev/null /etc/resolv.conf
echo ready
exec -a "r1hpc-rehearsal: holds the network namespace" sleep infinity >/dev/null
"""
READY = "ready\n"

INSPECT = """
ip -json -details link show; echo; echo --
ip -4 -json route show default; echo; echo --
ip -6 -json route show default
"""


@dataclass(frozen=True)
class Namespace:
    """A network (and mount) namespace that a process of ours lives in."""

    member: ProcessId
    network: str
    """Its name, as in `net:[4026532178]`."""

    @classmethod
    def of(cls, pid: int) -> Namespace:
        """Return the namespace of a process, which must not be the caller's own."""
        network = network_namespace(pid)
        if network is None or network == network_namespace():
            raise RehearsalError(f"process {pid} is not in a network namespace of its own: {network}")
        return cls(ProcessId.of(pid), network)

    def wrap(self, command: Sequence[str], directory: str = "/", *, mounts: bool = True) -> list[str]:
        """Return `command` made to run inside, in `directory`; its process id stays that of the new process."""
        if self.network == network_namespace():
            return ["/bin/sh", "-c", ENTER, "r1hpc", self.network, directory, *command]
        if not self.member.alive():
            raise RehearsalError(f"network namespace {self.network}: the process that held it is gone; run `down`")
        proc = f"/proc/{self.member.pid}/ns"
        enter = ["nsenter", f"--net={proc}/net", *([f"--mount={proc}/mnt"] if mounts else []), "--"]
        return [*enter, "/bin/sh", "-c", ENTER, "r1hpc", self.network, directory, *command]

    def ip(self, batch: Sequence[str]) -> None:
        """Run `ip` commands inside, stopping at the first that fails; only in a namespace without uplink."""
        inspected = run_checked(self.wrap(["/bin/sh", "-c", INSPECT], mounts=False))
        # A table without entries prints nothing at all.
        links, routes, routes6 = (json.loads(part.strip() or "[]") for part in inspected.split("--\n"))
        require_no_uplink(self.network, links, routes + routes6)
        text = "".join(f"{line}\n" for line in batch)
        run_checked(self.wrap(["ip", "-batch", "-"], mounts=False), text)

    def remove_link(self, name: str) -> None:
        """Remove a link inside, if it is still there."""
        # The kernel may be taking it away at this moment, so that a failure says nothing: look afterwards.
        subprocess.run(self.wrap(["ip", "link", "del", name], mounts=False), capture_output=True, timeout=20)
        links = json.loads(run_checked(self.wrap(["ip", "-json", "link", "show"], mounts=False)))
        if any(link["ifname"] == name for link in links):
            raise RehearsalError(f"network namespace {self.network}: link {name} cannot be removed")


def require_no_uplink(name: str, links: Sequence[Mapping[str, Any]], routes: Sequence[Mapping[str, Any]]) -> None:
    """Raise RehearsalError when a namespace has a way out: a default route, or a link that is not of the cluster.

    `links` and `routes` are what `ip -json -details` prints. Tunnel devices which some kernels put into every new
    namespace stay down and are no way out.
    """
    foreign = [
        link["ifname"]
        for link in links
        if link.get("link_type") != "loopback"
        and link.get("linkinfo", {}).get("info_kind") not in CLUSTER_LINKS
        and "UP" in link["flags"]
    ]
    if foreign or routes:
        found = [f"link {name}" for name in foreign] + [f"default route {route}" for route in routes]
        raise RehearsalError(
            f"network namespace {name} has an uplink ({'; '.join(found)}): refusing to add an address, "
            "since packets of the private network could leave this host"
        )


def hold_command(etc: str) -> list[str]:
    """Return the command that makes the outer namespace, lives in it, and prints `READY` when it may be entered."""
    return ["unshare", "--net", "--mount", "--propagation=private", "/bin/bash", "-c", HOLD, "r1hpc", etc]


def wait_for_namespace(pid: int, outside: str | None, deadline_s: float = 10) -> Namespace:
    """Return the namespace that a process makes for itself, once it is no longer in `outside`."""
    deadline = time.monotonic() + deadline_s
    while (network := network_namespace(pid)) in (outside, network_namespace()):
        if time.monotonic() > deadline:
            raise RehearsalError(f"process {pid} made no network namespace within {deadline_s:g} s")
        time.sleep(0.005)
    if network is None:
        raise RehearsalError(f"process {pid} ended before it made its network namespace")
    return Namespace.of(pid)


def namespaces_unavailable() -> str | None:
    """Return why nodes cannot have namespaces of their own, None when they can; tried out in a throw-away one."""
    attempt = "set -e; ip link add name r1br0 type bridge; ip link add name r1a type veth peer name r1b"
    command = ["unshare", "--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc", "sh", "-c", attempt]
    try:
        run_checked(command)
        run_checked(["nsenter", "--version"])
    except (RehearsalError, FileNotFoundError) as error:
        return str(error)
    return None


def run_checked(command: Sequence[str], text: str = "") -> str:
    """Run a short command and return its output; RehearsalError carries its words when it fails."""
    result = subprocess.run(command, input=text, capture_output=True, text=True, timeout=20)
    if result.returncode != 0:
        raise RehearsalError(f"{' '.join(command)}: exit {result.returncode}: {result.stderr.strip()}")
    return result.stdout
