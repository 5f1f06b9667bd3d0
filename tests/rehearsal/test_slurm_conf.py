"""The generated configuration, for the versions of Slurm that differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from r1hpc.errors import RehearsalError
from r1hpc.rehearsal.layout import Layout
from r1hpc.rehearsal.slurm_conf import ConfInputs, cgroup_conf, gres_conf, slurm_conf, slurmdbd_conf
from r1hpc.rehearsal.spec import ClusterSpec, Kind
from r1hpc.rehearsal.topology import plan_topology
from r1hpc.rehearsal.version import SlurmVersion, parse_version

DIRECTORY = Path("/srv/private")
BOOKWORM = SlurmVersion(22, 5)


def conf_inputs(version: SlurmVersion = BOOKWORM, kind: Kind = Kind.LOOPBACK, **fields: object) -> ConfInputs:
    spec = ClusterSpec(directory=DIRECTORY, **fields)  # type: ignore[arg-type]
    return ConfInputs(
        spec=spec,
        kind=kind,
        layout=Layout(DIRECTORY),
        topology=plan_topology(spec, kind, base_port=20000),
        version=version,
        host_name="laptop",
        user="ada",
        first_job_id=4711,
    )


def keywords(text: str) -> dict[str, str]:
    """The keywords that stand once; NodeName and PartitionName lines are read by `records`."""
    pairs = (line.split("=", 1) for line in text.splitlines() if not line.startswith(("NodeName", "PartitionName")))
    return {name: value for name, value in pairs}  # noqa: C416 - dict() would accept a line without "="


def records(text: str, first: str) -> list[dict[str, str]]:
    """The lines that begin with the keyword `first`, each as its keywords."""
    lines = [line for line in text.splitlines() if line.startswith(f"{first}=")]
    assert lines, f"no {first} line"
    return [dict(part.split("=", 1) for part in line.split()) for line in lines]


@pytest.mark.parametrize(
    ("printed", "version"),
    [
        ("slurm-wlm 22.05.8\n", (22, 5)),
        ("slurm 23.11.4\n", (23, 11)),
        ("slurm 24.11.0-0rc1", (24, 11)),
        ("slurm 25.05", (25, 5)),
    ],
)
def test_version_is_read_from_what_slurmctld_prints(printed: str, version: tuple[int, int]) -> None:
    assert parse_version(printed) == version


def test_output_without_a_version_is_shown_in_the_error() -> None:
    with pytest.raises(RehearsalError, match="'command not found'"):
        parse_version("command not found\n")


def test_every_loopback_node_has_its_own_address_and_port() -> None:
    nodes = records(slurm_conf(conf_inputs(nodes=3)), "NodeName")
    found = [(node["NodeName"], node["NodeHostname"], node["NodeAddr"], node["Port"]) for node in nodes]
    # 20000 slurmctld, 20001 slurmdbd, 20002 MariaDB, then the nodes.
    assert found == [
        ("node01", "laptop", "127.0.0.11", "20003"),
        ("node02", "laptop", "127.0.0.12", "20004"),
        ("node03", "laptop", "127.0.0.13", "20005"),
    ]


def test_namespace_nodes_have_own_hostnames_and_one_port() -> None:
    nodes = records(slurm_conf(conf_inputs(kind=Kind.NAMESPACE, nodes=2)), "NodeName")
    assert [(node["NodeAddr"], node["Port"]) for node in nodes] == [("10.77.0.11", "20003"), ("10.77.0.12", "20003")]
    assert all("NodeHostname" not in node for node in nodes)


def test_node_names_are_padded_to_the_widest_and_addresses_run_on() -> None:
    text = slurm_conf(conf_inputs(nodes=120))
    nodes = records(text, "NodeName")
    assert (nodes[0]["NodeName"], nodes[-1]["NodeName"]) == ("node001", "node120")
    assert nodes[-1]["NodeAddr"] == "127.0.0.130"
    assert gres_conf(conf_inputs(nodes=120)).splitlines()[1].startswith("NodeName=node[001-120] ")


def test_gpus_are_counted_in_both_files() -> None:
    inputs = conf_inputs(nodes=2, gpus_per_node=4)
    assert records(slurm_conf(inputs), "NodeName")[0]["Gres"] == "gpu:h100:4"
    assert gres_conf(inputs) == (
        "AutoDetect=off\nNodeName=node[01-02] Name=gpu Type=h100 File=/srv/private/devices/gpu[0-3]\n"
    )


def test_one_node_with_one_gpu_has_no_range() -> None:
    assert gres_conf(conf_inputs(nodes=1, gpus_per_node=1)).splitlines()[1] == (
        "NodeName=node01 Name=gpu Type=h100 File=/srv/private/devices/gpu0"
    )


def test_low_is_the_default_and_high_preempts_it() -> None:
    low, high = records(slurm_conf(conf_inputs(grace_s=7)), "PartitionName")
    assert (low["PartitionName"], low["Default"], low["PriorityTier"], low["PreemptMode"]) == (
        *("low", "YES", "1"),
        "REQUEUE",
    )
    assert low["GraceTime"] == "7"
    assert (high["PartitionName"], high["Default"], high["PriorityTier"]) == ("high", "NO", "10")


def test_timings_of_the_spec_reach_slurm() -> None:
    found = keywords(
        slurm_conf(
            conf_inputs(
                kill_wait_s=3, slurmd_timeout_s=6, message_timeout_s=4, cred_expire_s=9, max_array_size=17, nodes=1
            )
        )
    )
    assert (found["KillWait"], found["SlurmdTimeout"], found["MessageTimeout"], found["MaxArraySize"]) == (
        *("3", "6"),
        *("4", "17"),
    )
    assert found["AuthInfo"] == "socket=/srv/private/run/munge.sock,cred_expire=9"


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ((22, 5), ("SlurmctldParameters", "preempt_send_user_signal")),
        ((23, 11), ("PreemptParameters", "send_user_signal")),
    ],
)
def test_user_signal_at_preemption_has_the_keyword_of_the_version(
    version: tuple[int, int], expected: tuple[str, str]
) -> None:
    found = keywords(slurm_conf(conf_inputs(SlurmVersion(*version), preempt_send_user_signal=True)))
    keyword, value = expected
    assert {name: found.get(name) for name in ("SlurmctldParameters", "PreemptParameters")} == {
        "SlurmctldParameters": None,
        "PreemptParameters": None,
    } | {keyword: value}


def test_no_user_signal_unless_asked_for() -> None:
    assert "send_user_signal" not in slurm_conf(conf_inputs())


def test_plugins_named_none_are_named_only_where_they_exist() -> None:
    assert keywords(slurm_conf(conf_inputs(SlurmVersion(22, 5))))["TaskPlugin"] == "task/none"
    assert "/none" not in slurm_conf(conf_inputs(SlurmVersion(23, 11)))


def test_requeue_delay_follows_cred_expire_where_slurm_has_it() -> None:
    def scheduler(minor: tuple[int, int]) -> str:
        return keywords(slurm_conf(conf_inputs(SlurmVersion(*minor), cred_expire_s=9)))["SchedulerParameters"]

    assert "requeue_delay=9" in scheduler((25, 11)).split(",")
    assert "requeue_delay" not in scheduler((25, 5))


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ((22, 5), "CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n"),
        ((23, 11), "CgroupPlugin=cgroup/v1\n"),
        ((24, 11), "CgroupPlugin=disabled\n"),
    ],
)
def test_cgroups_stay_unused(version: tuple[int, int], text: str) -> None:
    assert cgroup_conf(SlurmVersion(*version)) == text


def test_gpus_are_accounted_for_only_with_slurmdbd() -> None:
    with_dbd = keywords(slurm_conf(conf_inputs(accounting=True)))
    assert with_dbd["AccountingStorageTRES"] == "gres/gpu"
    assert with_dbd["AccountingStoragePort"] == "20001"
    assert "AccountingStorageTRES" not in keywords(slurm_conf(conf_inputs()))
    dbd = keywords(slurmdbd_conf(conf_inputs(accounting=True)))
    assert (dbd["DbdPort"], dbd["StorageHost"], dbd["StoragePort"]) == ("20001", "127.0.0.1", "20002")


def test_no_file_of_the_system_is_named() -> None:
    text = slurm_conf(conf_inputs(accounting=True)) + gres_conf(conf_inputs())
    paths = [part for line in text.splitlines() for part in line.replace("=", " ").split() if part.startswith("/")]
    assert len(paths) > 5
    assert [path for path in paths if not path.startswith("/srv/private/")] == []
    assert "PluginDir" not in text  # the compiled-in one is right on every distribution
