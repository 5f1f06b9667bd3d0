"""By which interface trainers of several hosts meet over gloo."""

from __future__ import annotations

import socket

import psutil
import pytest

from r1hpc.actors.rendezvous import interface_towards


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.10", "::1"])
def test_loopback(address: str) -> None:
    assert interface_towards(address) == "lo"


def test_every_address_of_this_host_is_reached_by_the_interface_that_has_it() -> None:
    found = {
        each.address: name
        for name, addresses in psutil.net_if_addrs().items()
        for each in addresses
        if each.family == socket.AF_INET and psutil.net_if_stats()[name].isup
    }
    assert found
    assert {address: interface_towards(address) for address in found} == found


def test_an_address_that_no_route_leads_to_names_no_interface() -> None:
    assert interface_towards("255.255.255.255") is None
