"""How Ray is started: nothing left to a default, nothing inherited that could mislead it."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from r1hpc.cluster.hosts import ClusterHost
from r1hpc.cluster.launch import Launch
from r1hpc.cluster.ray import Slot, check_slots
from r1hpc.cluster.ray_command import has_joined, ray_environment, start_command
from r1hpc.errors import BringUpError

HOSTS = (ClusterHost("local01", "127.0.0.10", 2), ClusterHost("local02", "127.0.0.11", 2))
LAUNCH = Launch("run-1", "cpu", HOSTS, 26000, 400, 80_000_000, 120.0, 4)


def _options(host: ClusterHost) -> dict[str, str]:
    words = start_command(LAUNCH, host, Path("/tmp/t"))[4:]
    return dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)


def test_every_port_is_explicit_and_lies_in_the_hosts_own_band() -> None:
    for index, host in enumerate(HOSTS):
        ports = {name: int(value) for name, value in _options(host).items() if "port" in name}
        band = range(26000 + index * 400, 26400 + index * 400)
        assert all(port in band for port in ports.values()), ports
        assert len(set(ports.values())) == len(ports)
        assert {"node-manager-port", "object-manager-port", "min-worker-port", "max-worker-port"} <= set(ports)


def test_no_port_is_left_to_ray_which_would_take_one_of_a_band_elsewhere() -> None:
    # Ray refuses to start where two of its ports are equal, and the dashboard's is 8265 unless it is named.
    launch = replace(LAUNCH, port_base=8200)
    options = [word for word in start_command(launch, HOSTS[0], Path("/tmp/t")) if "port=" in word]
    assert f"--dashboard-port={launch.ports(HOSTS[0]).dashboard}" in options
    first, last = launch.ports(HOSTS[0]).workers
    assert first <= 8265 <= last


def test_the_head_listens_and_the_others_join_it() -> None:
    head, worker = (start_command(LAUNCH, host, Path("/tmp/t")) for host in HOSTS)
    assert "--head" in head
    assert "--port=26001" in head
    assert worker[worker.index("--address") + 1] == "127.0.0.10:26001"
    assert "--head" not in worker
    for command in (head, worker):
        assert "--block" in command  # its children die with it
        assert "--disable-usage-stats" in command


def test_a_host_offers_exactly_its_slots() -> None:
    options = _options(HOSTS[1])
    assert (options["num-gpus"], options["num-cpus"]) == ("2", "2")
    assert options["node-ip-address"] == "127.0.0.11"
    assert options["object-store-memory"] == "80000000"


def test_every_option_is_known_to_this_ray() -> None:
    known = subprocess.run(
        [sys.executable, "-m", "ray.scripts.scripts", "start", "--help"], capture_output=True, text=True, check=True
    ).stdout
    hidden = {"node-name", "no-monitor"}  # in `ray start` all the same: the bring-up tests pass them
    given = {
        word.split("=")[0].removeprefix("--") for word in start_command(LAUNCH, HOSTS[0], Path("/t")) if "--" in word
    }
    assert len(given) > 15
    assert {name for name in given - hidden if not re.search(rf"--{name}\b", known)} == set()


def test_proxies_launchers_and_another_ray_do_not_reach_our_ray() -> None:
    inherited = {
        "HTTP_PROXY": "http://proxy",
        "https_proxy": "http://proxy",
        "no_proxy": "localhost",
        "RAY_ADDRESS": "192.0.2.9:6379",
        "PMI_FD": "7",
        "OMPI_COMM_WORLD_RANK": "0",
        "HOME": "/home/alice",
        "SLURM_JOB_ID": "7",
        "PYTHONPATH": "/site",
    }
    marks = {"R1HPC_RUN": "run-1", "R1HPC_NODE": "7-r0/local01"}
    environment = ray_environment(inherited, LAUNCH, HOSTS[0], Path("/attempt/secret"), marks, Path("/tmp/r1-own"))
    assert not {"HTTP_PROXY", "https_proxy", "no_proxy", "RAY_ADDRESS", "PMI_FD", "OMPI_COMM_WORLD_RANK"} & set(
        environment
    )
    assert environment["HOME"] == "/home/alice"
    assert environment["SLURM_JOB_ID"] == "7"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == "/attempt/secret"
    assert environment["CUDA_VISIBLE_DEVICES"] == "0,1"
    assert environment["R1HPC_NODE"] == "7-r0/local01"
    assert environment["R1HPC_SCRATCH"] == "/tmp/r1-own"
    assert environment["PYTHONPATH"].endswith(":/site")


def test_real_gpus_stay_as_the_scheduler_gave_them() -> None:
    launch = Launch("run-1", "cuda", HOSTS, 26000, 400, 80_000_000, 120.0, 2)
    environment = ray_environment({"CUDA_VISIBLE_DEVICES": "4,5"}, launch, HOSTS[0], Path("/s"), {}, Path("/t"))
    assert environment["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert "CUDA_VISIBLE_DEVICES" not in ray_environment({}, launch, HOSTS[0], Path("/s"), {}, Path("/t"))


def test_joining_is_read_from_the_log(tmp_path: Path) -> None:
    log = tmp_path / "ray.log"
    assert not has_joined(log)
    log.write_text("2026-11-22 22:39:53,113\tSUCC scripts.py:1084 -- ----\n")
    assert not has_joined(log)
    log.write_text("2026-11-22 22:39:53,114\tSUCC scripts.py:1085 -- Ray runtime started.\n")
    assert has_joined(log)


def slot(host: str, gpu: int, bundle: int, pid: int) -> Slot:
    return Slot(host, gpu, bundle, pid, "one")


def test_a_host_that_answers_from_other_slots_than_its_own_is_an_error() -> None:
    right = [slot("local01", 0, 0, 1), slot("local01", 1, 1, 2), slot("local02", 0, 2, 3), slot("local02", 1, 3, 4)]
    check_slots(HOSTS, right)
    with pytest.raises(
        BringUpError, match=r"local02 answers from GPUs \[0\], but its hostfile line says slots=2"
    ) as caught:
        check_slots(HOSTS, right[:3])
    assert caught.value.hosts == ("local02",)
    with pytest.raises(BringUpError, match=r"local02 answers from GPUs \[0, 0\]"):
        check_slots(HOSTS, [*right[:3], slot("local02", 0, 3, 4)])
