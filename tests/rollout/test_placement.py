"""Where the processes of the engines go."""

from __future__ import annotations

import pytest

from r1hpc.cluster.ports import PortBand
from r1hpc.rollout.placement import EngineHost, EnginePlacementError, place_engines

BAND = PortBand(26000, 400)


def hosts(count: int, band: PortBand = BAND) -> list[EngineHost]:
    return [EngineHost(f"10.0.0.{number}", band) for number in range(1, count + 1)]


def test_an_engine_of_64_gpus_takes_8_hosts_and_its_first_one_is_where_all_meet() -> None:
    first, second = place_engines(hosts(16), gpus_per_host=8, gpus_per_engine=64)
    assert [process.host for process in first] == [f"10.0.0.{number}" for number in range(1, 9)]
    assert [process.host for process in second] == [f"10.0.0.{number}" for number in range(9, 17)]
    assert [process.node_rank for process in second] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert {(process.rendezvous_host, process.rendezvous_port) for process in second} == {("10.0.0.9", 26202)}
    assert {process.url for process in second} == {"http://10.0.0.9:26200"}
    assert {process.base_gpu_id for process in first} == {0}
    assert second[3].name == "engine1-node3"


def test_engines_that_share_a_host_have_their_own_gpus_and_ports() -> None:
    engines = place_engines(hosts(1), gpus_per_host=8, gpus_per_engine=2)
    assert [engine[0].base_gpu_id for engine in engines] == [0, 2, 4, 6]
    assert [engine[0].http_port for engine in engines] == [26200, 26224, 26248, 26272]
    ports = [port for engine in engines for port in engine[0].ports]
    assert len(ports) == len(set(ports)) == 4 * 24
    assert {engine[0].rendezvous_port for engine in engines} < set(ports)
    assert engines[3][0].name == "engine3"


def test_hosts_that_share_a_machine_use_the_ports_of_their_own_bands() -> None:
    shared = [EngineHost("127.0.0.2", PortBand(26000, 400)), EngineHost("127.0.0.3", PortBand(26400, 400))]
    ((head, other),) = place_engines(shared, gpus_per_host=1, gpus_per_engine=2)
    assert (head.http_port, other.http_port) == (26200, 26600)
    assert (other.rendezvous_host, other.rendezvous_port) == ("127.0.0.2", 26202)
    assert other.url == "http://127.0.0.2:26200"


def test_an_ipv6_address_stands_in_brackets_in_a_url() -> None:
    ((process,),) = place_engines([EngineHost("fd00::1", BAND)], 1, 1)
    assert process.url == "http://[fd00::1]:26200"


@pytest.mark.parametrize(("count", "per_host", "per_engine"), [(3, 8, 16), (2, 8, 6), (2, 8, 12)])
def test_engines_that_do_not_divide_the_hosts_are_refused(count: int, per_host: int, per_engine: int) -> None:
    world = count * per_host
    with pytest.raises(
        EnginePlacementError, match=rf"engine\({per_engine}\): {count} hosts \* 8 GPUs = {world} do not"
    ):
        place_engines(hosts(count), per_host, per_engine)


def test_a_band_too_small_for_the_engines_of_a_host_names_the_span_to_set() -> None:
    with pytest.raises(EnginePlacementError, match=r"8 engines \* 24 ports = 192; set hosts.port_span to 384 or more"):
        place_engines(hosts(1, PortBand(26000, 200)), 8, 1)


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_an_address_that_means_every_network_is_refused(address: str) -> None:
    with pytest.raises(EnginePlacementError, match=f"an engine at {address} would listen on every network"):
        place_engines([EngineHost("10.0.0.1", BAND), EngineHost(address, BAND)], 8, 8)


def test_an_engine_of_one_host_meets_on_loopback_where_nobody_else_can_join() -> None:
    ((alone,),) = place_engines(hosts(1), gpus_per_host=8, gpus_per_engine=8)
    ((head, other),) = place_engines(hosts(2), gpus_per_host=8, gpus_per_engine=16)
    assert (alone.meeting_host, alone.url) == ("127.0.0.1", "http://10.0.0.1:26200")
    assert (head.meeting_host, other.meeting_host) == ("10.0.0.1", "10.0.0.1")
