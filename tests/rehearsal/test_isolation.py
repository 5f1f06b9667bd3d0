"""Nothing may leave the host: the check before every address, on what `ip -json -details` prints."""

from __future__ import annotations

from typing import Any

import pytest

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal.namespace import Namespace, require_no_uplink, run_checked
from r1hpc.rehearsal.processes import ProcessId, network_namespace

LOOPBACK: dict[str, Any] = {"ifname": "lo", "link_type": "loopback", "flags": ["LOOPBACK", "UP"]}
BRIDGE: dict[str, Any] = {
    "ifname": "r1br0",
    "link_type": "ether",
    "flags": ["BROADCAST", "UP"],
    "linkinfo": {"info_kind": "bridge"},
}
CABLE: dict[str, Any] = {
    "ifname": "r1v01",
    "link_type": "ether",
    "flags": ["BROADCAST", "UP"],
    "linkinfo": {"info_kind": "veth", "info_slave_kind": "bridge"},
}
# Some kernels put such devices into every new namespace.
IDLE_TUNNEL: dict[str, Any] = {
    "ifname": "sit0",
    "link_type": "sit",
    "flags": ["NOARP"],
    "linkinfo": {"info_kind": "sit"},
}
ETHERNET_CARD: dict[str, Any] = {"ifname": "eth0", "link_type": "ether", "flags": ["BROADCAST", "UP"]}
MACVLAN: dict[str, Any] = {
    "ifname": "mac0",
    "link_type": "ether",
    "flags": ["BROADCAST", "UP"],
    "linkinfo": {"info_kind": "macvlan"},
}
DEFAULT_ROUTE = {"dst": "default", "gateway": "198.51.100.1", "dev": "eth0"}


def test_loopback_bridge_cables_and_idle_tunnels_are_no_uplink() -> None:
    require_no_uplink("net:[1]", [LOOPBACK, BRIDGE, CABLE, IDLE_TUNNEL], [])


@pytest.mark.parametrize("link", [ETHERNET_CARD, MACVLAN, IDLE_TUNNEL | {"flags": ["NOARP", "UP"]}])
def test_any_other_link_that_is_up_is_an_uplink(link: dict[str, Any]) -> None:
    with pytest.raises(RehearsalError, match=rf"net:\[1\] has an uplink \(link {link['ifname']}\)"):
        require_no_uplink("net:[1]", [LOOPBACK, BRIDGE, link], [])


def test_default_route_is_an_uplink() -> None:
    with pytest.raises(RehearsalError, match=r"default route .*198\.51\.100\.1"):
        require_no_uplink("net:[1]", [LOOPBACK], [DEFAULT_ROUTE])


def test_the_hosts_own_namespace_is_never_taken_for_a_private_one() -> None:
    with pytest.raises(RehearsalError, match="not in a network namespace of its own"):
        Namespace.of(1)


def test_namespace_whose_holder_is_gone_cannot_be_entered() -> None:
    gone = Namespace(ProcessId(pid=1, started=-1), "net:[1]")
    with pytest.raises(RehearsalError, match=r"net:\[1\]: the process that held it is gone"):
        gone.wrap(["true"])


def test_command_refuses_to_run_in_another_namespace_than_the_recorded_one() -> None:
    own = network_namespace()
    assert own is not None
    here = Namespace(ProcessId(pid=1, started=-1), own)
    command = here.wrap(["echo", "inside"])
    assert run_checked(command) == "inside\n"
    elsewhere = ["net:[1]" if word == own else word for word in command]
    with pytest.raises(RehearsalError, match=r"exit 125: r1hpc: not in network namespace net:\[1\]: refusing"):
        run_checked(elsewhere)
