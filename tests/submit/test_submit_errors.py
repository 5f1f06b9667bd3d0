"""Bad input to `submit`: one clear screen, exit code 1, nothing queued, nothing written where it should not be."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from r1hpc.exit_codes import CRASHED, INVALID
from r1hpc.rehearsal.cluster import RehearsalCluster
from r1hpc.submit.parameters import HOME

SUBMIT = [sys.executable, "-m", "r1hpc.submit"]
PREFLIGHT = ["tests/pipeline.yaml", "--stage", "preflight"]


def _environment(path: str | None = None) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    return environment | ({"PATH": path} if path is not None else {})


def _refused(*arguments: str, path: str | None = None, prefix: tuple[str, ...] = (), code: int = CRASHED) -> str:
    """What a refused submit says: on stderr, without a traceback, on one screen."""
    done = subprocess.run(
        [*prefix, *SUBMIT, *arguments],
        cwd=HOME,
        env=_environment(path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) <= 25
    return done.stderr


def _without_slurm(tmp_path: Path) -> str:
    """A PATH without sbatch: an empty directory, since python is called by its full path."""
    return str(tmp_path)


def test_unknown_key_and_wrong_type_come_in_one_go_with_the_nearest_name() -> None:
    text = _refused(
        "configs/r1.yaml",
        *("--dry-run", "--set", "perf.context_paralel_size=4", "--set", "hosts.num_nodes=x"),
        code=INVALID,
    )
    assert "context_paralel_size" in text
    assert "context_parallel_size" in text
    assert "hosts.num_nodes" in text
    assert "2 configuration problems" in text


def test_parallel_grid_that_does_not_divide_shows_the_arithmetic() -> None:
    text = _refused("configs/r1.yaml", "--dry-run", "--set", "hosts.num_nodes=15", code=INVALID)
    assert "tp(8) * cp(4) * pp(4) = 128 does not divide 15 nodes * 8 GPUs = 120" in text
    assert "configs/r1.yaml:" in text


def test_missing_file() -> None:
    assert "configs/no-such.yaml" in _refused("configs/no-such.yaml", "--dry-run", code=INVALID)


def test_a_model_that_is_not_supported_is_named_with_its_file(tmp_path: Path) -> None:
    model = tmp_path / "config.json"
    model.write_text('{"model_type": "llama"}')
    text = _refused("configs/r1.yaml", "--dry-run", "--set", f"ckpt.hf_config={model}", code=INVALID)
    assert f"{model}: model_type is 'llama'; supported: 'deepseek_v3'" in text


def test_missing_prompt_data_and_checkpoint_are_named_together(tmp_path: Path) -> None:
    root = ["--set", f"run.root={tmp_path}", "--set", f"vars.WORK={tmp_path}"]
    text = _refused("tests/pipeline.yaml", "--stage", "train", *root)
    assert "rollout.prompt_data" in text
    assert "ckpt.hf_checkpoint" in text
    assert not (tmp_path / "rehearsal").exists()


def test_hostfile_with_15_of_16_hosts(tmp_path: Path) -> None:
    hostfile = tmp_path / "fifteen"
    hostfile.write_text("".join(f"192.0.2.{i} slots=8\n" for i in range(1, 16)), encoding="utf-8")
    text = _refused("configs/r1.yaml", "--dry-run", "--set", f"hosts.hostfile={hostfile}")
    assert "15 of 16 hosts" in text
    assert str(hostfile) in text


def test_hostfile_slots_that_differ_from_gpus_per_node(tmp_path: Path) -> None:
    hostfile = tmp_path / "uneven"
    lines = [f"192.0.2.{i} slots={4 if i == 7 else 8}\n" for i in range(1, 17)]
    hostfile.write_text("".join(lines), encoding="utf-8")
    text = _refused("configs/r1.yaml", "--dry-run", "--set", f"hosts.hostfile={hostfile}")
    assert f"{hostfile}:7" in text
    assert "gpus_per_node" in text


def test_run_root_that_is_a_file(tmp_path: Path) -> None:
    root = tmp_path / "file"
    root.write_text("", encoding="utf-8")
    text = _refused(*PREFLIGHT, "--set", f"run.root={root}", path=_without_slurm(tmp_path))
    assert f"run directory {root}/rehearsal" in text
    assert "set run.root" in text


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
def test_unreadable_directory(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0)
    without_capabilities = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    try:
        checkpoint = ["--set", f"ckpt.hf_checkpoint={closed}", "--set", f"run.root={tmp_path}"]
        text = _refused("tests/pipeline.yaml", "--stage", "train", *checkpoint, prefix=without_capabilities)
        assert f"ckpt.hf_checkpoint = {closed}: permission denied" in text
        text = _refused(*PREFLIGHT, "--set", f"run.root={closed}", prefix=without_capabilities)
        assert "Permission denied" in text
    finally:
        closed.chmod(stat.S_IRWXU)


def test_no_slurm_where_it_was_asked_for(tmp_path: Path) -> None:
    root = f"run.root={tmp_path}/runs"
    text = _refused(*PREFLIGHT, "--cluster", "slurm", "--set", root, path=_without_slurm(tmp_path))
    assert "sbatch is not on PATH" in text
    assert "--cluster local" in text


def test_gpus_of_many_hosts_are_not_looked_for_on_this_one_when_slurm_is_missing(tmp_path: Path) -> None:
    gpus = ["configs/r1.yaml", "--stage", "preflight", "--set", f"run.root={tmp_path}/runs"]
    text = _refused(*gpus, path=_without_slurm(tmp_path))
    assert "sbatch is not on PATH, and this run asks for 16 hosts of 8 GPUs" in text
    assert "load the site's Slurm" in text
    assert "--cluster local" in text
    for name in ("sbatch", "scontrol"):
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2\nexit 1\n", encoding="utf-8")
        program.chmod(0o755)
    text = _refused(*gpus, path=f"{tmp_path}/bin:/bin")
    assert "Slurm is installed but does not answer" in text
    assert "Unable to contact slurm controller, and this run asks for 16 hosts" in text
    assert not (tmp_path / "runs").exists()


def test_sweep_without_values_and_over_a_shared_section() -> None:
    assert "--sweep grpo.eps_clip: write KEY=VALUE,VALUE" in _refused(
        "configs/r1.yaml", "--dry-run", "--sweep", "grpo.eps_clip"
    )
    assert "all elements of the array share it" in _refused(
        "configs/r1.yaml", "--dry-run", "--sweep", "hosts.num_nodes=8,16"
    )


@pytest.mark.slurm
def test_slurm_that_is_down(make_cluster, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    cluster: RehearsalCluster = make_cluster(nodes=1, kind="loopback")
    environment = cluster.environment()
    cluster.down()
    done = subprocess.run(
        [*SUBMIT, *PREFLIGHT, "--cluster", "slurm", "--set", f"run.root={tmp_path}"],
        cwd=HOME,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "Slurm is installed but does not answer" in done.stderr


@pytest.mark.slurm
def test_partition_that_does_not_exist(slurm4: RehearsalCluster, tmp_path: Path) -> None:
    text = _refused_on(slurm4, *PREFLIGHT, "--set", "slurm.partition=gpu")
    assert "slurm.partition = gpu: no such partition; there are" in text
    assert "low" in text


@pytest.mark.slurm
def test_more_nodes_than_there_are_is_refused_by_test_only(slurm4: RehearsalCluster, tmp_path: Path) -> None:
    text = _refused_on(slurm4, *PREFLIGHT, "--set", "hosts.num_nodes=8")
    assert "sbatch --test-only" in text
    assert "nothing was submitted" in text


@pytest.mark.slurm
def test_array_larger_than_max_array_size(slurm4: RehearsalCluster, tmp_path: Path) -> None:
    from r1hpc.cluster.slurm import SlurmClient
    from r1hpc.submit.checks import array_problems

    class Client(SlurmClient):
        """The same client, its commands run where the private Slurm is."""

        def call(self, *argv: str, timeout_s: float | None = None) -> str:
            return slurm4.run(argv, check=True).stdout

    limit = slurm4.spec.max_array_size
    assert array_problems(Client(), {"cast.num_tasks": limit}) == []
    (problem,) = array_problems(Client(), {"cast.num_tasks": limit + 1})
    assert problem.startswith(f"cast.num_tasks = {limit + 1}: this Slurm has MaxArraySize = {limit}")


def _refused_on(cluster: RehearsalCluster, *arguments: str) -> str:
    root = cluster.shared_dir / "refused"
    done = cluster.run([*SUBMIT, *arguments, "--cluster", "slurm", "--set", f"run.root={root}"], cwd=HOME)
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    assert cluster.run(["squeue", "-h"], check=True).stdout == ""
    return done.stderr


def test_a_sweep_is_checked_element_by_element_before_anything_is_written(tmp_path: Path) -> None:
    sweep = ["configs/r1.yaml", "--set", f"run.root={tmp_path}", "--dry-run", "--sweep"]
    assert "eps_clip_high" in _refused(*sweep, "grpo.eps_clip_hig=0.24,0.28", code=INVALID)
    assert "tp(7)" in _refused(*sweep, "perf.tensor_model_parallel_size=8,7", code=INVALID)
    assert "a value is given twice" in _refused(*sweep, "optimizer.lr=1e-6,1e-6")
    assert "share a run directory" in _refused(*sweep, "rollout.input_key=/a/b,/a_b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv")
def test_inputs_below_a_closed_directory_are_no_traceback(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "below").mkdir(parents=True)
    closed.chmod(0)
    try:
        settings = [
            f"rollout.prompt_data={closed}/below/x.jsonl",
            f"ckpt.ref_load={closed}/below",
            f"run.root={tmp_path}",
        ]
        command = [*SUBMIT, "configs/r1.yaml", "--dry-run", *(word for pair in settings for word in ("--set", pair))]
        done = subprocess.run(
            ["setpriv", "--bounding-set=-all", "--inh-caps=-all", *command],
            cwd=HOME,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert f"note: rollout.prompt_data = {closed}/below/x.jsonl: permission denied" in done.stdout
    finally:
        closed.chmod(stat.S_IRWXU)
