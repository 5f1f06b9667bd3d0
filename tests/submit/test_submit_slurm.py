"""`submit` on a real Slurm: chain, arrays, live runs, the preflight stage from the command to the last process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from r1hpc.cluster.leftovers import processes_of
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.submit.parameters import HOME

pytestmark = pytest.mark.slurm

SUBMIT = [sys.executable, "-m", "r1hpc.submit", "tests/pipeline.yaml", "--cluster", "slurm"]


@pytest.fixture
def root(slurm4: RehearsalCluster, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A run root that all nodes see."""
    folder = slurm4.shared_dir / request.node.name.partition("[")[0][:40]
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _chain(cluster: RehearsalCluster, root: Path, mode: str) -> subprocess.CompletedProcess[str]:
    return cluster.run([sys.executable, "-m", "tests.submit.chain_driver", str(root), mode], cwd=HOME, timeout_s=60)


def _wait_until_idle(cluster: RehearsalCluster, deadline_s: float = 90) -> None:
    end = time.monotonic() + deadline_s
    while queue := cluster.run(["squeue", "-h"], check=True).stdout:
        assert time.monotonic() < end, f"still in the queue after {deadline_s} s:\n{queue}"
        time.sleep(0.3)


def test_stages_run_in_order_and_arrays_in_full(slurm4: RehearsalCluster, root: Path) -> None:
    done = _chain(slurm4, root, "all-well")
    assert done.returncode == 0, done.stderr
    assert [line.split()[::2] for line in done.stdout.splitlines()] == [["cast", "3"], ["convert", "2"], ["train", "1"]]
    _wait_until_idle(slurm4)
    casts = {"cast-0.seen", "cast-1.seen", "cast-2.seen"}
    for convert in ("convert-0.seen", "convert-1.seen"):
        assert casts <= set((root / convert).read_text(encoding="utf-8").split())
    assert casts | {"convert-0.seen", "convert-1.seen"} == set((root / "train-0.seen").read_text().split())
    assert "--dependency=afterok:" in (root / "sbatch" / "train.sh").read_text(encoding="utf-8")


def test_a_failed_stage_starts_nothing_after_it_and_leaves_nothing_waiting(
    slurm4: RehearsalCluster, root: Path
) -> None:
    assert _chain(slurm4, root, "first-fails").returncode == 0
    _wait_until_idle(slurm4)  # --kill-on-invalid-dep: nothing waits for ever
    assert list(root.glob("*.seen")) == []


def test_a_stage_that_cannot_be_submitted_takes_those_before_it_back(slurm4: RehearsalCluster, root: Path) -> None:
    done = _chain(slurm4, root, "third-unloadable")
    assert done.returncode != 0
    _wait_until_idle(slurm4, 30)
    assert not (root / "train-0.seen").exists()
    assert json.loads((root / "jobs.json").read_text(encoding="utf-8"))["jobs"] == []


def test_preflight_stage_from_the_command_to_the_last_process(slurm4: RehearsalCluster, root: Path) -> None:
    done = slurm4.run([*SUBMIT, "--stage", "preflight", "--wait", "--set", f"run.root={root}"], cwd=HOME, timeout_s=240)
    assert done.returncode == 0, done.stdout + done.stderr
    run = root / "rehearsal"
    (attempt,) = (run / "attempts").iterdir()
    hosts = [line.split() for line in (attempt / "hostfile").read_text(encoding="utf-8").splitlines()]
    assert [slots for _, slots in hosts] == ["slots=2"] * 4
    assert [address for address, _ in hosts] == list(slurm4.node_addresses.values())
    slots = json.loads((attempt / "placement.json").read_text(encoding="utf-8"))
    assert len(slots) == 8
    assert len({slot["pid"] for slot in slots} | {(slot["host"], slot["gpu"]) for slot in slots}) >= 8
    end = json.loads((attempt / "end.json").read_text(encoding="utf-8"))
    assert (end["exit_code"], end["cause"], end["action"]) == (0, "done", "exit")
    run_id = json.loads((run / "run.json").read_text(encoding="utf-8"))["run_id"]
    assert processes_of(run_id) == []
    assert slurm4.run(["squeue", "-h"], check=True).stdout == ""


def test_a_second_submit_of_a_live_run_is_refused_with_its_job_ids(slurm4: RehearsalCluster, root: Path) -> None:
    # --begin keeps the job in the queue without running it.
    command = [*SUBMIT, "--stage", "preflight", "--set", f"run.root={root}", "--set", "slurm.extra={begin: now+1hour}"]
    first = slurm4.run(command, cwd=HOME)
    assert first.returncode == 0, first.stderr
    job_id = first.stdout.partition("preflight: job ")[2].split()[0]
    try:
        # As after a submit that was killed between sbatch and its record.
        (root / "rehearsal" / "jobs.json").unlink()
        second = slurm4.run(command, cwd=HOME)
        assert second.returncode == 1
        assert "is live already" in second.stderr
        assert f"scancel {job_id}" in second.stderr
    finally:
        slurm4.cancel(job_id)


def test_sweep_runs_an_array_of_whole_train_jobs_each_in_its_own_directory(
    slurm4: RehearsalCluster, root: Path
) -> None:
    small = ["hosts.num_nodes=1", "perf.pipeline_model_parallel_size=1", "perf.context_parallel_size=1"]
    small += ["perf.decoder_last_pipeline_num_layers=null", f"run.root={root}"]
    command = [*SUBMIT, "--stage", "preflight", "--wait", "--sweep", "grpo.eps_clip_high=0.24,0.28"]
    done = slurm4.run([*command, *(word for pair in small for word in ("--set", pair))], cwd=HOME, timeout_s=240)
    assert done.returncode == 0, done.stdout + done.stderr
    for value in ("0.24", "0.28"):
        run = root / f"rehearsal.eps_clip_high-{value}"
        (attempt,) = (run / "attempts").iterdir()
        assert json.loads((attempt / "end.json").read_text(encoding="utf-8"))["exit_code"] == 0
        assert f"eps_clip_high: {value}" in (run / "config.yaml").read_text(encoding="utf-8")


def test_a_refused_submit_of_a_live_run_leaves_its_configuration_as_it_is(slurm4: RehearsalCluster, root: Path) -> None:
    command = [*SUBMIT, "--stage", "preflight", "--set", f"run.root={root}", "--set", "slurm.extra={begin: now+1hour}"]
    first = slurm4.run(command, cwd=HOME)
    assert first.returncode == 0, first.stderr
    config = root / "rehearsal" / "config.yaml"
    before = config.read_bytes()
    job_id = first.stdout.partition("preflight: job ")[2].split()[0]
    try:
        assert slurm4.run([*command, "--set", "grpo.eps_clip=0.1"], cwd=HOME).returncode == 1
        assert config.read_bytes() == before
    finally:
        slurm4.cancel(job_id)


def test_hosts_of_a_hostfile_are_asked_for_by_node_name_without_the_excluded(
    slurm4: RehearsalCluster, root: Path
) -> None:
    addresses = slurm4.node_addresses
    hostfile = root / "hostfile"
    hostfile.write_text("".join(f"{addresses[f'node0{i}']} slots=2\n" for i in (3, 1, 4, 2)), encoding="utf-8")
    settings = [f"run.root={root}", "hosts.num_nodes=2", f"hosts.hostfile={hostfile}", "slurm.exclude=node[01]"]
    settings += ["perf.pipeline_model_parallel_size=1", "perf.decoder_last_pipeline_num_layers=null"]
    settings += ["slurm.extra={begin: now+1hour}"]
    command = [*SUBMIT, "--stage", "preflight", *(word for pair in settings for word in ("--set", pair))]
    done = slurm4.run(command, cwd=HOME)
    assert done.returncode == 0, done.stderr
    job_id = done.stdout.partition("preflight: job ")[2].split()[0]
    try:
        shown = slurm4.run(["scontrol", "show", "job", "-o", job_id], check=True).stdout
        assert "ReqNodeList=node[03-04] " in shown
        assert "ExcNodeList=node01 " in shown
        run = json.loads((root / "rehearsal" / "run.json").read_text(encoding="utf-8"))
        assert (run["pinned"], run["num_nodes"]) == (["node03", "node01", "node04", "node02"], 2)
    finally:
        slurm4.cancel(job_id)
    refused = slurm4.run([*command, "--set", "slurm.exclude=node[01-03]"], cwd=HOME)
    assert "1 are left for hosts.num_nodes = 2" in refused.stderr


def test_a_job_that_slurm_took_while_sbatch_failed_is_cancelled_too(slurm4: RehearsalCluster, root: Path) -> None:
    # As when slurmctld is slow: the job is in the queue, and sbatch gives up before it hears of it.
    real = shutil.which("sbatch")
    wrapper = root / "bin" / "sbatch"
    wrapper.parent.mkdir()
    lines = ["#!/bin/bash", f'"{real}" "$@" || exit', 'case "$1" in --test-only) exit 0;; esac']
    lines += [
        f"date >> {root}/accepted",
        'echo "sbatch: error: Batch job submission failed: Socket timed out" >&2; exit 1',
    ]
    wrapper.write_text("\n".join([*lines, ""]), encoding="utf-8")
    wrapper.chmod(0o755)
    bystander = slurm4.run(["sbatch", "--parsable", "--hold", "--wrap=true"], check=True).stdout.strip()
    try:
        done = slurm4.run(
            [sys.executable, "-m", "tests.submit.chain_driver", str(root), "all-well"],
            cwd=HOME,
            env={"PATH": f"{wrapper.parent}:{os.environ['PATH']}"},
            timeout_s=60,
        )
        assert done.returncode != 0
        assert "stage cast: sbatch failed" in done.stderr
        assert "Socket timed out" in done.stderr
        assert len((root / "accepted").read_text(encoding="utf-8").splitlines()) == 1
        deadline = time.monotonic() + 30
        while (queue := slurm4.run(["squeue", "-h", "-o", "%F"], check=True).stdout.split()) != [bystander]:
            assert time.monotonic() < deadline, queue
            time.sleep(0.3)
        assert json.loads((root / "jobs.json").read_text(encoding="utf-8"))["jobs"] == []
    finally:
        slurm4.cancel(bystander)
