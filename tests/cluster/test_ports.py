"""Bands of ports: never two hosts of a machine in one, never where somebody listens."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from r1hpc.cluster.facts import collect
from r1hpc.cluster.hosts import ClusterHost, hosts_per_machine
from r1hpc.cluster.ports import band, choose_port_base
from r1hpc.errors import ClusterError


def test_a_band_is_a_step_above_the_base_where_nobody_is() -> None:
    bases = {choose_port_base(26000, 400, 1, [], f"attempt{i}") for i in range(200)}
    assert bases == {26000 + 400 * i for i in range(8)}
    # Everything but 27200 to 27599 is taken.
    busy = [26001, 26400, 27199, 27600, 28399, 28400, 29199]
    assert {choose_port_base(26000, 400, 1, [*busy, 26800], f"attempt{i}") for i in range(50)} == {27200}


def test_hosts_that_share_a_machine_count_for_the_step() -> None:
    hosts = [ClusterHost(f"n{i}", f"127.0.0.{10 + i}", 2) for i in range(16)]
    assert hosts_per_machine(hosts) == 16
    assert hosts_per_machine([ClusterHost("a", "192.0.2.1", 8), ClusterHost("b", "192.0.2.2", 8)]) == 1
    # 26000 + 16 * 400 = 32400: the second band starts there, and six of them end below 65536.
    bases = {choose_port_base(26000, 400, 16, [], f"attempt{i}") for i in range(200)}
    assert bases == {26000 + 6400 * i for i in range(6)}
    assert band(32400, 400, 15).engines == (32400 + 15 * 400 + 200, 32400 + 16 * 400 - 1)


def test_no_free_band_names_the_ports_in_the_way() -> None:
    with pytest.raises(ClusterError, match=r"taken: 26000, 26400, 26800.*set hosts.port_base"):
        choose_port_base(26000, 400, 1, range(26000, 29200, 400), "a")
    with pytest.raises(ClusterError, match=r"hosts.port_base\(65000\) .* goes beyond port 65535"):
        choose_port_base(65000, 400, 2, [], "a")


def test_a_listener_of_this_machine_is_reported(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        facts = collect("me", tmp_path, {}, None, [])
        assert listener.getsockname()[1] in facts.busy_ports
