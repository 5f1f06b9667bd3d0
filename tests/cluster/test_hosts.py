"""The hosts of an attempt: their order, their files, their ports."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import pytest

from r1hpc.cluster.hosts import (
    ClusterHost,
    Node,
    find_host,
    in_hostfile_order,
    machine_index,
    read_hosts,
    write_hosts,
)
from r1hpc.cluster.launch import Launch, engine_key, read_launch, read_secret, write_launch, write_secret
from r1hpc.errors import ClusterError

NODES = [Node("node01", "192.0.2.1"), Node("node02", "192.0.2.2"), Node("node03", "192.0.2.3")]


def _launch(hosts: list[ClusterHost]) -> Launch:
    return Launch("run-1", "cpu", tuple(hosts), 26000, 400, 80_000_000, 120.0, 4)


def test_a_hostfile_orders_the_nodes_by_name_or_address_and_its_other_lines_are_spares() -> None:
    ordered = in_hostfile_order(NODES, ["192.0.2.3", "node01", "node09", "node02"])
    assert [node.name for node in ordered] == ["node03", "node01", "node02"]


def test_a_node_that_no_line_names_is_an_error() -> None:
    with pytest.raises(ClusterError, match=r"does not name: node02 \(192\.0\.2\.2\)"):
        in_hostfile_order(NODES, ["node01", "node03", "login1"], lambda name: [])


def test_names_are_resolved_only_where_nodes_are_left_over() -> None:
    asked: list[str] = []

    def resolve(name: str) -> list[str]:
        asked.append(name)
        return {"node02-ib": ["192.0.2.2"]}.get(name, [])

    assert [node.name for node in in_hostfile_order(NODES, ["node03", "node02-ib", "node01"], resolve)] == [
        "node03",
        "node02",
        "node01",
    ]
    assert asked == ["node02-ib"]
    in_hostfile_order(NODES, ["node01", "node02", "node03", "spare"], resolve)
    assert asked == ["node02-ib"]


def test_hosts_on_loopback_share_a_machine_and_so_have_port_bands_of_their_own() -> None:
    hosts = [ClusterHost(f"local{index}", f"127.0.0.{index}", 2) for index in (10, 11, 12)]
    assert [machine_index(hosts, host.name) for host in hosts] == [0, 1, 2]
    launch = _launch(hosts)
    assert [launch.ports(host).first for host in hosts] == [26000, 26400, 26800]
    assert launch.ray_address == "127.0.0.10:26001"


def test_hosts_with_addresses_of_their_own_use_the_same_ports() -> None:
    hosts = [ClusterHost("n1", "192.0.2.1", 8), ClusterHost("n2", "2001:db8::2", 8), ClusterHost("n3", "n3", 8)]
    launch = _launch(hosts)
    assert [launch.ports(host).first for host in hosts] == [26000] * 3


def test_no_two_services_of_a_host_share_a_port() -> None:
    ports = _launch([ClusterHost("n1", "192.0.2.1", 8)]).ports(ClusterHost("n1", "192.0.2.1", 8))
    services = [
        ports.roll_call,
        ports.gcs,
        ports.node_manager,
        ports.object_manager,
        ports.metrics_export,
        ports.agent_http,
        ports.agent_grpc,
        ports.runtime_env,
        ports.ray_client,
    ]
    workers, engines = range(ports.workers[0], ports.workers[1] + 1), range(ports.engines[0], ports.engines[1] + 1)
    every = [*services, *workers, *engines]
    assert len(set(every)) == len(every)
    assert min(every) == 26000
    assert max(every) == 26399
    assert len(workers) == 184
    assert len(engines) == 200


def test_an_ipv6_head_is_bracketed_in_the_address_of_ray() -> None:
    assert _launch([ClusterHost("n1", "2001:db8::1", 8)]).ray_address == "[2001:db8::1]:26001"


def test_hosts_and_launch_survive_their_files(tmp_path: Path) -> None:
    hosts = [ClusterHost("n1", "192.0.2.1", 8), ClusterHost("n2", "192.0.2.2", 8)]
    write_hosts(tmp_path / "hosts.json", hosts)
    write_launch(tmp_path / "launch.json", _launch(hosts))
    assert read_hosts(tmp_path / "hosts.json") == hosts
    assert read_launch(tmp_path / "launch.json") == _launch(hosts)
    assert find_host(hosts, "192.0.2.2") == hosts[1]
    assert find_host(hosts, "n3") is None


def test_agents_without_a_passed_preflight_say_so(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="the preflight writes it, and it did not pass"):
        read_launch(tmp_path / "launch.json")


def test_the_secret_is_random_and_for_its_owner_only(tmp_path: Path) -> None:
    write_secret(tmp_path / "secret")
    first = read_secret(tmp_path / "secret")
    write_secret(tmp_path / "secret")
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert len(first) == 64
    assert first != read_secret(tmp_path / "secret")


def test_the_engines_key_is_made_of_the_secret_and_no_answer_to_a_challenge_of_the_roll_call() -> None:
    key = engine_key(b"secret")
    assert key == hmac.digest(b"secret", b"r1hpc engines", hashlib.sha512).hex()
    assert key != engine_key(b"another")
    assert len(key) != len(hmac.digest(b"secret", b"r1hpc engines", "sha256").hex())
