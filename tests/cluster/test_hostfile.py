"""Every dialect of a hostfile that people bring, and what is said of those that are none."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1hpc.cluster.hostfile import Host, check, main, read_hostfile
from r1hpc.cluster.hostfile_forms import write_hydra, write_openmpi
from r1hpc.cluster.hosts import ClusterHost
from r1hpc.errors import HostfileError

HOME = Path(__file__).resolve().parents[2]


def _read(tmp_path: Path, text: str) -> list[tuple[str, int | None]]:
    path = tmp_path / "h.txt"
    path.write_bytes(text.encode())
    return [(host.name, host.slots) for host in read_hostfile(path).hosts]


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("192.0.2.11 slot=8\n192.0.2.12 slot=8\n", [("192.0.2.11", 8), ("192.0.2.12", 8)]),
        ("n01 slots=8 max_slots=8\n", [("n01", 8)]),
        ("n01 slots = 8\tmax-slots = 16\n", [("n01", 8)]),
        ("n01 cpu=4\nn02 count=4\n", [("n01", 4), ("n02", 4)]),
        ("n01:8\nn02:8\n", [("n01", 8), ("n02", 8)]),
        ("n01:8 ifname=ib0 binding=user:0\n", [("n01", 8)]),
        ("n02\nn01\n", [("n02", None), ("n01", None)]),
        ("n01\nn01\nn02\nn01\nn02\n", [("n01", 3), ("n02", 2)]),
        ("n01 slots=4\nn01 slots=4\nn02\nn02 slots=7\n", [("n01", 8), ("n02", 8)]),
        ("# all\n\n  n01 slots=8  # the head\n\t\n#n02 slots=8\n", [("n01", 8)]),
        ("n01 slots=8\r\nn02 slots=8\r\n", [("n01", 8), ("n02", 8)]),
        ("\ufeffn01 slots=8\n", [("n01", 8)]),
        ("n01 slots=8", [("n01", 8)]),
        ("n01\nn02\n^n01\n", [("n02", None)]),
        ("alice@n01 slots=8\nn02 user=bob slots=8\n", [("n01", 8), ("n02", 8)]),
        ("node[01-03,07] slots=8\n", [("node01", 8), ("node02", 8), ("node03", 8), ("node07", 8)]),
        ("r[1-2]n[01-02]:4\n", [("r1n01", 4), ("r1n02", 4), ("r2n01", 4), ("r2n02", 4)]),
        ("192.0.2.[9-11] slots=2\n", [("192.0.2.9", 2), ("192.0.2.10", 2), ("192.0.2.11", 2)]),
        (
            "2001:db8::1\n[2001:db8::2]\n[2001:db8::3]:8\n",
            [("2001:db8::1", None), ("2001:db8::2", None), ("2001:db8::3", 8)],
        ),
        ("2001:0db8:0::1 slots=8\n", [("2001:db8::1", 8)]),
    ],
)
def test_every_dialect_is_read_in_the_order_of_its_lines(
    tmp_path: Path, text: str, hosts: list[tuple[str, int | None]]
) -> None:
    assert _read(tmp_path, text) == hosts


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("n01\nn02\nnode[07-\n", '3: "node[07-" has an unclosed range'),
        ("node[07-x]\n", '1: "node[07-x]" is no node set'),
        ("n01 slotz=8\n", '1: "slotz=8" has an unknown key; did you mean "slots"?'),
        ("n01 speed=8\n", '1: "speed=8" has an unknown key'),
        ("n01 slots=0\n", '1: "slots=0" must give a number of slots of at least 1'),
        ("n01 slots=eight\n", '1: "slots=eight" must give a number of slots'),
        ("n01:\n", '1: "n01:" must give a number of slots'),
        ("n01 8\n", '1: "8" is not understood: write slots=8'),
        ("n01 n02\n", '1: "n02" is not understood'),
        ("n01 slots=8 max_slots=4\n", "1: slots=8 is more than max_slots=4"),
        ("n01:8 slots=8\n", '1: "slots=8" gives the slots of "n01" a second time'),
        ("@compute slots=8\n", '1: "@compute" is a node group'),
        ("alice@ slots=8\n", '1: "alice@" has a user and no host'),
        ("192.0.2.311 slots=8\n", '1: "192.0.2.311" is no IPv4 address'),
        ("2001:db8::g\n", '1: "2001:db8::g" is no IPv6 address'),
        ("n/01\n", '1: "n/01" is no host name'),
        ("slots=8\n", '1: "slots=8" is no host name'),
    ],
)
def test_an_unreadable_line_is_named_with_file_line_and_part(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(HostfileError) as caught:
        _read(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path / 'h.txt'}:{problem}")


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(HostfileError) as caught:
        _read(tmp_path, "n01 slots=0\nn02\nn03 x=1\n")
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["1", "3"]


@pytest.mark.parametrize("text", ["", "# nothing\n\n", "n01\n^n01\n"])
def test_a_hostfile_without_hosts_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(HostfileError, match="names no host"):
        _read(tmp_path, text)


def test_a_missing_file_and_a_directory_are_told_apart_from_a_bad_one(tmp_path: Path) -> None:
    with pytest.raises(HostfileError, match="No such file"):
        read_hostfile(tmp_path / "absent")
    with pytest.raises(HostfileError, match="Is a directory"):
        read_hostfile(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00n01")
    with pytest.raises(HostfileError, match="is no text file"):
        read_hostfile(tmp_path / "binary")


def test_what_open_mpi_would_refuse_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "h.txt"
    path.write_text("n01 slot=8\nn02 slots=8\n^n09\n")
    hostfile = read_hostfile(path)
    assert hostfile.notices == (
        f'{path}:1: "slot=8" is read as slots=8; Open MPI and DeepSpeed refuse "slot="',
        f"{path}:3: ^n09 excludes a host that no line names",
    )
    assert not hostfile.openmpi


def _hosts(tmp_path: Path, count: int, slots: int = 8) -> Path:
    path = tmp_path / "h.txt"
    path.write_text("".join(f"n{index:02d} slots={slots}\n" for index in range(1, count + 1)))
    return path


def test_too_few_hosts_and_other_slots_are_refused_with_numbers_and_lines(tmp_path: Path) -> None:
    assert check(read_hostfile(_hosts(tmp_path, 16)), 16, 8) == []
    path = _hosts(tmp_path, 15)
    path.write_text(path.read_text().replace("n07 slots=8", "n07 slots=4"))
    assert check(read_hostfile(path), 16, 8) == [
        f"{path}: 15 of 16 hosts: hosts.num_nodes = 16; add 1 or lower hosts.num_nodes",
        f"{path}:7: n07 has 4 slots, but hosts.gpus_per_node = 8",
    ]


def test_a_range_is_held_to_the_rule_of_a_single_host(tmp_path: Path) -> None:
    path = tmp_path / "h.txt"
    path.write_text("192.0.2.[254-255] slots=8\n192.0.2.[255-256] slots=8\n")
    with pytest.raises(HostfileError) as caught:
        read_hostfile(path)
    assert str(caught.value) == f'{path}:2: "192.0.2.256" is no IPv4 address'


def test_lines_beyond_the_nodes_of_the_job_are_spares(tmp_path: Path) -> None:
    hostfile = read_hostfile(_hosts(tmp_path, 5))
    assert hostfile.spares(4) == (Host("n05", 8, 5),)
    assert hostfile.spares(5) == ()


def test_bare_hosts_have_the_slots_that_the_configuration_gives(tmp_path: Path) -> None:
    path = tmp_path / "h.txt"
    path.write_text("n01\nn02 slots=8\n")
    hostfile = read_hostfile(path)
    assert check(hostfile, 2, 8) == []
    assert hostfile.cluster_hosts(8) == [ClusterHost("n01", "n01", 8), ClusterHost("n02", "n02", 8)]


def test_each_launcher_gets_its_own_form(tmp_path: Path) -> None:
    hosts = [ClusterHost("n01", "192.0.2.1", 8), ClusterHost("n02", "2001:db8::2", 8)]
    write_openmpi(hosts, tmp_path / "o")
    write_hydra(hosts, tmp_path / "h")
    assert (tmp_path / "o").read_text() == "192.0.2.1 slots=8\n2001:db8::2 slots=8\n"
    assert (tmp_path / "h").read_text() == "192.0.2.1:8\nn02:8\n"  # hydra splits at the first colon


def test_the_command_line_prints_the_exact_launch_of_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "h"
    path.write_text("n[01-02] slots=8\n")
    assert main([str(path), "--run", "r.yaml", "--write"]) == 0
    printed = capsys.readouterr().out.splitlines()
    program = f"python -m jobs.train r.yaml --hostfile {path}"
    assert printed == [
        "n01  slots=8",
        "n02  slots=8",
        "",
        f"Open MPI:  mpirun --hostfile {path}.openmpi --map-by ppr:1:node -np 2 {program}",
        f"MPICH:     mpiexec -f {path}.hydra -ppn 1 -n 2 {program}",
    ]
    assert Path(f"{path}.openmpi").read_text() == "n01 slots=8\nn02 slots=8\n"
    assert Path(f"{path}.hydra").read_text() == "n01:8\nn02:8\n"


def test_the_example_hostfile_has_the_sixteen_hosts_of_the_recipe() -> None:
    hostfile = read_hostfile(HOME / "hostfiles" / "r1.hostfile")
    assert check(hostfile, 16, 8) == []
    assert len(hostfile.hosts) == 16
    assert hostfile.openmpi
