"""What a site's Slurm may look like: partitions, preemption, drained nodes, and the user's own variables."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from r1hpc.cluster.requeue import parse_job
from r1hpc.cluster.slurm import SlurmClient, outside_any_job
from r1hpc.config import Config, load_config
from r1hpc.errors import ClusterError
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.submit.checks import array_problems, restart_mode
from r1hpc.submit.parameters import HOME
from r1hpc.submit.trial import most_nodes

_PARTITIONS = (
    "PartitionName=low AllowGroups=ALL Default=YES Hidden=NO MaxNodes=UNLIMITED PreemptMode=REQUEUE State=UP "
    "TotalCPUs=64 TotalNodes=8",
    "PartitionName=high AllowGroups=ALL Default=NO Hidden=YES MaxNodes=4 PreemptMode=OFF State=UP "
    "TotalCPUs=128 TotalNodes=16",
    "PartitionName=spot AllowGroups=ALL Default=NO Hidden=NO MaxNodes=UNLIMITED PreemptMode=CANCEL State=UP "
    "TotalCPUs=8 TotalNodes=1",
)


class Site(SlurmClient):
    """A site by what `scontrol show` says of it."""

    def __init__(self, partitions: tuple[str, ...] = _PARTITIONS, config: str = "") -> None:
        super().__init__()
        self._answers = {"partition": "\n".join(partitions) + "\n", "config": config}

    def call(self, *argv: str, timeout_s: float | None = None) -> str:
        (answer,) = [text for what, text in self._answers.items() if what in argv]
        return answer


def _config(*overrides: str) -> Config:
    return load_config(HOME / "tests" / "pipeline.yaml", overrides=list(overrides)).config


@pytest.fixture(autouse=True)
def no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "SBATCH_", "SQUEUE_")):
            monkeypatch.delenv(name)


def test_several_partitions_are_judged_together() -> None:
    assert restart_mode(_config("slurm.partition='low,high'"), Site()) == ("requeue", None)
    mode, notice = restart_mode(_config("slurm.partition='low,spot'"), Site())
    assert mode == "chain"
    assert notice is not None
    assert "partition spot: PreemptMode=CANCEL" in notice


def test_a_partition_that_is_not_there_is_named_among_those_that_are() -> None:
    with pytest.raises(ClusterError, match=r"slurm\.partition = gpu: no such partition; there are low, high, spot"):
        restart_mode(_config("slurm.partition='low,gpu'"), Site())


def test_no_default_partition_is_a_notice() -> None:
    mode, notice = restart_mode(_config("slurm.partition=null"), Site(_PARTITIONS[1:]))
    assert mode == "requeue"
    assert notice is not None
    assert "no default partition" in notice


def test_the_partition_of_the_users_profile_is_judged_when_the_configuration_names_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert restart_mode(_config("slurm.partition=null"), Site())[0] == "requeue"
    monkeypatch.setenv("SBATCH_PARTITION", "spot")
    assert restart_mode(_config("slurm.partition=null"), Site())[0] == "chain"
    assert restart_mode(_config("slurm.partition=low"), Site())[0] == "requeue"


def test_preemption_by_qos_is_said_to_be_unknown_only_where_it_is_used() -> None:
    by_partition = "PreemptMode             = REQUEUE\nPreemptType             = preempt/partition_prio\n"
    assert restart_mode(_config("slurm.partition=low"), Site(config=by_partition)) == ("requeue", None)
    mode, notice = restart_mode(
        _config("slurm.partition=low"), Site(config=by_partition.replace("partition_prio", "qos"))
    )
    assert mode == "requeue"
    assert notice is not None
    assert "PreemptType=preempt/qos" in notice


def test_the_most_nodes_of_a_job_are_the_partitions_own_or_its_limit() -> None:
    assert most_nodes(Site(), "low") == 8
    assert most_nodes(Site(), "high") == 4  # MaxNodes below TotalNodes
    assert most_nodes(Site(), "high,spot") == 4
    assert most_nodes(Site(), None) == 8


def test_arrays_are_held_against_both_limits() -> None:
    config = "MaxArraySize            = 1001\nSchedulerParameters     = bf_continue,max_array_tasks=100\n"
    assert array_problems(Site(config=config), {"cast.num_tasks": 100}) == []
    (problem,) = array_problems(Site(config=config), {"cast.num_tasks": 101, "convert.num_tasks": 4})
    assert problem.startswith("cast.num_tasks = 101: this Slurm has SchedulerParameters max_array_tasks = 100")


def test_slurms_commands_print_what_is_parsed_whatever_the_profile_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SLURM_TIME_FORMAT", "relative"), ("SQUEUE_STATES", "RUNNING"), ("SCANCEL_INTERACTIVE", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SBATCH_ACCOUNT", "physics")
    lines = SlurmClient().call("env").splitlines()
    assert "SLURM_TIME_FORMAT=standard" in lines
    assert "SBATCH_ACCOUNT=physics" in lines
    assert not [line for line in lines if line.startswith(("SQUEUE_", "SCANCEL_"))]


def _visible(*settled: str) -> list[str]:
    with outside_any_job(settled=settled):
        return sorted(name for name in os.environ if name.startswith(("SLURM_", "SBATCH_")))


def test_outside_a_job_the_profile_says_what_the_configuration_leaves_open(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_EXPORT", "SBATCH_SIGNAL", "SLURM_CONF", "SLURM_NTASKS"):
        monkeypatch.setenv(name, "x")
    assert _visible() == ["SBATCH_ACCOUNT", "SBATCH_PARTITION", "SLURM_CONF"]
    assert _visible("partition") == ["SBATCH_ACCOUNT", "SLURM_CONF"]
    assert os.environ["SBATCH_EXPORT"] == "x"


def test_inside_a_job_its_variables_are_no_options_of_a_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_JOB_NUM_NODES", "SBATCH_PARTITION", "SLURM_CONF"):
        monkeypatch.setenv(name, "1")
    assert _visible() == ["SLURM_CONF"]


SMALL = ["perf.pipeline_model_parallel_size=1", "perf.decoder_last_pipeline_num_layers=null", "hosts.num_nodes=2"]


@pytest.fixture
def drained(slurm4: RehearsalCluster) -> Iterator[RehearsalCluster]:
    """Four nodes, three of them drained."""
    slurm4.run(["scontrol", "update", "NodeName=node[02-04]", "State=DRAIN", "Reason=test"], check=True)
    yield slurm4
    slurm4.run(["scontrol", "update", "NodeName=node[02-04]", "State=RESUME"], check=True)
    slurm4.wait_nodes(lambda state: state == "idle", slurm4.node_names, 20)


def _submit(cluster: RehearsalCluster, root: Path, *overrides: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "r1hpc.submit", "tests/pipeline.yaml", "--cluster", "slurm", "--stage"]
    settings = [f"run.root={root}", *overrides]
    return cluster.run(
        [*command, "preflight", *(word for setting in settings for word in ("--set", setting))],
        cwd=HOME,
        env=env,
        timeout_s=60,
    )


def _job_id(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("preflight: job ")[2].split()[0]


@pytest.mark.slurm
def test_a_job_that_waits_for_drained_nodes_is_queued_and_one_that_never_fits_is_not(
    drained: RehearsalCluster,
) -> None:
    root = drained.shared_dir / "drained"
    try:
        done = _submit(drained, root, *SMALL)
        job_id = _job_id(done)
        assert "note: stage preflight cannot start now" in done.stdout
        assert drained.run(["squeue", "-h", "-j", job_id, "-o", "%T"], check=True).stdout.strip() == "PENDING"
        drained.cancel(job_id)
        eight = _submit(drained, root, *SMALL[:2], "hosts.num_nodes=8")
        assert eight.returncode == 1
        assert "8 nodes are asked for, a job of the default partition may have 4" in eight.stderr
        assert "nothing was submitted" in eight.stderr
    finally:
        shutil.rmtree(root, ignore_errors=True)


@pytest.mark.slurm
def test_partitions_and_profile_reach_slurm_as_the_user_means_them(slurm4: RehearsalCluster) -> None:
    root = slurm4.shared_dir / "partitions"
    later = "slurm.extra={begin: now+1hour}"
    expected = {
        ("slurm.partition='low,high'", "high"): "low,high",
        ("slurm.partition=low", "high"): "low",
        ("slurm.partition=null", "high"): "high",
    }
    try:
        for (setting, profile), partition in expected.items():
            done = _submit(slurm4, root, *SMALL, later, setting, SBATCH_PARTITION=profile, SLURM_TIME_FORMAT="%s")
            job_id = _job_id(done)
            shown = slurm4.run(["scontrol", "show", "job", "-o", job_id], check=True).stdout
            slurm4.cancel(job_id)
            # Slurm sorts several by priority as soon as it looks at the job.
            asked = parse_job(shown)["Partition"].split(",")
            assert sorted(asked) == sorted(partition.split(","))
            assert "preflight: Slurm expects to start it at 20" in done.stdout
            assert ("SBATCH_PARTITION=high of your environment applies" in done.stdout) == (partition == "high")
    finally:
        shutil.rmtree(root, ignore_errors=True)
