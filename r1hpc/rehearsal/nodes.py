"""Nodes of both kinds: how one is powered on, cut off and powered off."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from r1hpc.rehearsal.daemons import Starter
from r1hpc.rehearsal.layout import Layout
from r1hpc.rehearsal.namespace import BRIDGE, Namespace, wait_for_namespace
from r1hpc.rehearsal.processes import ProcessId, end_all, environment, network_namespace, process_family, works_in
from r1hpc.rehearsal.topology import NAMESPACE_NETWORK, Node

UNSHARE_NODE = [
    *("unshare", "--net", "--uts", "--ipc", "--mount", "--propagation=private"),
    *("--pid", "--fork", "--kill-child", "--mount-proc"),
]

# The first process of a namespace node. It waits until its network is laid (end of file: `up` died), makes the node's
# own hostname, /tmp and /dev/shm, and then is what keeps the node powered on: a shell, since it must also reap.
# $1: node name, $2: the folder that becomes /tmp, $3...: directories under /tmp to see at the same path.
NODE_INIT = """
set -eu
node=$1 tmp=$2
shift 2
read -r go
[ "$go" = go ]
exec </dev/null
hostname "$node"
for shared in "$@"; do
    inside=$tmp/${shared#/tmp/}
    mkdir -p "$inside"
    mount --bind "$shared" "$inside"
done
mount --rbind "$tmp" /tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
slurmd -D -N "$node" &
wait $!
"""


def start_loopback_nodes(starter: Starter, layout: Layout, nodes: Sequence[Node]) -> dict[str, ProcessId]:
    """Start one slurmd a node and return them by node name."""
    return {
        # The spool directory as working directory marks what slurmd starts: see processes.py.
        node.name: starter.start(node.name, ["slurmd", "-D", "-N", node.name], cwd=layout.spool / node.name)
        for node in nodes
    }


def start_namespace_nodes(
    starter: Starter, layout: Layout, outer: Namespace, nodes: Sequence[Node], share: Sequence[Path]
) -> dict[str, ProcessId]:
    """Make a set of namespaces a node, connect it to the bridge, then let it go on; return the nodes by name."""
    processes = {node.name: _spawn_namespace_node(starter, layout, node, share) for node in nodes}
    inner = {node.name: wait_for_namespace(processes[node.name].pid, outer.network) for node in nodes}
    outer.ip([line for node in nodes for line in _link_lines(node, processes[node.name])])
    for node in nodes:
        address = f"addr add {node.address}/{NAMESPACE_NETWORK.prefixlen} dev eth0"
        inner[node.name].ip(["link set lo up", address, "link set eth0 up"])
    for node in nodes:
        _let_go(starter.started[node.name])
    return processes


def power_off_namespace_node(outer: Namespace, node: Node, process: ProcessId) -> None:
    """End everything on a node at once, as a power loss does."""
    network = network_namespace(process.pid) if process.alive() else None
    if network not in (None, outer.network, network_namespace()):
        end_all(lambda: process_family(lambda pid: network_namespace(pid) == network))
    # The kernel takes the link away too, but later: a node of the same name could then not be powered on.
    outer.remove_link(link_name(node))


def power_off_loopback_node(layout: Layout, node: Node) -> None:
    """Kill slurmd and what runs for it.

    Unlike a power loss it leaves what a task did to the host: files in /tmp, segments in /dev/shm.
    """
    spool = layout.spool / node.name

    def runs_for_node(pid: int) -> bool:
        # slurmd and slurmstepd work in the spool directory; tasks know their node and cluster.
        known_by = environment(pid)
        is_task = f"SLURMD_NODENAME={node.name}" in known_by and not layout.marks.isdisjoint(known_by)
        return is_task or works_in(pid, spool)

    end_all(lambda: process_family(runs_for_node))


def link_name(node: Node) -> str:
    """Return the name of the bridge's end of a node's cable."""
    return f"r1v{node.name.removeprefix('node')}"


def _spawn_namespace_node(starter: Starter, layout: Layout, node: Node, share: Sequence[Path]) -> ProcessId:
    under_tmp = [str(path) for path in share if path.is_relative_to("/tmp")]
    private_tmp = layout.directory / "tmp" / node.name
    init = ["/bin/bash", "-c", NODE_INIT, "r1hpc", node.name, str(private_tmp), *under_tmp]
    spool = layout.spool / node.name
    return starter.start(node.name, [*UNSHARE_NODE, *init], cwd=spool, stdin=subprocess.PIPE)


def _link_lines(node: Node, process: ProcessId) -> list[str]:
    name = link_name(node)
    return [
        f"link add {name} type veth peer name eth0 netns {process.pid}",
        f"link set {name} master {BRIDGE} up",
    ]


def _let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None, "namespace nodes are started with a pipe"
    try:
        process.stdin.write("go\n")
        process.stdin.close()
    except BrokenPipeError:
        # It ended already: whoever waits for the node reports that, with its last words.
        return
