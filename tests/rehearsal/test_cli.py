"""`python -m r1hpc.rehearsal`, as a person types it."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from r1hpc.rehearsal.layout import Layout
from r1hpc.rehearsal.lifecycle import take_down

pytestmark = pytest.mark.slurm

REPOSITORY = Path(__file__).parents[2]

Rehearsal = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def directory(cluster_base: Path) -> Iterator[Path]:
    path = cluster_base / "cli"
    yield path
    take_down(Layout.at(path))
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def rehearsal(directory: Path) -> Rehearsal:
    def run(command: str, *words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "r1hpc.rehearsal", command, "--dir", str(directory), *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60)

    return run


def test_up_run_status_down(rehearsal: Rehearsal, directory: Path) -> None:
    up = rehearsal("up", "--nodes", "2", "--gpus-per-node", "4", "--grace-s", "1")
    assert up.returncode == 0, up.stderr
    assert up.stdout.startswith("up: 2 nodes idle in ")
    ran = rehearsal("run", "--", "srun", "-N2", "--gpus-per-node=4", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES")
    assert ran.stdout == "0,1,2,3\n" * 2
    submitted = rehearsal("run", "--", "sbatch", "--hold", "--job-name=waits", "-o", "/dev/null", "--wrap", "true")
    assert submitted.returncode == 0
    status = rehearsal("status").stdout
    assert f"directory {directory}" in status
    assert [line.split()[-1] for line in status.splitlines() if line.startswith("  node")] == ["idle", "idle"]
    for shown in ("waits", "slurmctld", "munged", "slurmd"):
        assert shown in status
    differs = rehearsal("up", "--nodes", "3")
    assert differs.returncode == 1
    assert "with another spec: nodes: 2 -> 3" in differs.stderr
    assert rehearsal("down").stdout == "down\n"
    again = rehearsal("down")
    assert (again.returncode, again.stdout) == (0, f"nothing to take down in {directory}\n")


def test_run_passes_the_exit_status_on(rehearsal: Rehearsal) -> None:
    rehearsal("up", "--nodes", "1")
    assert rehearsal("run", "--", "sh", "-c", "exit 7").returncode == 7
    assert rehearsal("run", "--", "no-such-command").returncode == 127
    empty = rehearsal("run")
    assert (empty.returncode, "no command given" in empty.stderr) == (1, True)


def test_run_passes_signals_on(rehearsal: Rehearsal, directory: Path) -> None:
    rehearsal("up", "--nodes", "1")
    command = "trap 'echo stopping; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    argv = [sys.executable, "-m", "r1hpc.rehearsal", "run", "--dir", str(directory), "--", "sh", "-c", command]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 9
        assert process.stdout.read() == "stopping\n"


def test_env_points_a_shell_at_a_loopback_cluster_that_spares_the_shell(
    rehearsal: Rehearsal, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsal("up", "--nodes", "2", "--kind", "loopback")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    lines = rehearsal("env").stdout
    assert "unset SLURM_JOB_ID" in lines.splitlines()
    script = (
        f'eval "$1"; sinfo --noheader --format=%D --partition=low; echo "job $SLURM_JOB_ID"; read end; echo {"spared"}'
    )
    with subprocess.Popen(
        ["sh", "-c", script, "sh", lines], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as shell:
        assert shell.stdout is not None
        assert [shell.stdout.readline(), shell.stdout.readline()] == ["2\n", "job \n"]
        assert rehearsal("down").returncode == 0
        assert shell.communicate("\n", timeout=10)[0] == "spared\n"


@pytest.mark.parametrize("command", ["status", "env", "run"])
def test_without_a_cluster_the_way_up_is_told(command: str, rehearsal: Rehearsal, directory: Path) -> None:
    words = ["--", "sinfo"] if command == "run" else []
    result = rehearsal(command, *words)
    assert result.returncode == 1
    assert f"python -m r1hpc.rehearsal up --dir {directory}" in result.stderr
    assert "Traceback" not in result.stderr


def test_unprivileged_user_gets_a_loopback_cluster(directory: Path) -> None:
    drop = _as_nobody()
    # Not below root's home, which nobody may not enter.
    home = Path("/var/tmp") / f"r1hpc-{directory.parent.name}"
    home.mkdir()
    home.chmod(0o777)
    try:
        base = [*drop, "-m", "r1hpc.rehearsal"]
        at = ["--dir", str(home / "c")]
        up = subprocess.run([*base, "up", *at, "--nodes", "2"], cwd=REPOSITORY, capture_output=True, text=True)
        assert up.returncode == 0, up.stderr
        assert "(loopback, " in up.stdout
        ran = subprocess.run(
            [*base, "run", *at, "--", "srun", "-N2", "id", "-u"], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert ran.stdout == "65534\n65534\n"
        refused = subprocess.run(
            [*base, "up", *at, "--kind", "namespace"], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert "--kind namespace: needs root; --kind loopback needs no privilege" in refused.stderr
        assert subprocess.run([*base, "down", *at], cwd=REPOSITORY, capture_output=True).returncode == 0
    finally:
        take_down(Layout.at(home / "c"))
        shutil.rmtree(home, ignore_errors=True)


def _as_nobody() -> list[str]:
    """A Python command that runs as the user nobody; skips where there is no way to one."""
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    for python in (sys.executable, "/usr/bin/python3"):
        drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env", "PYTHONDONTWRITEBYTECODE=1"]
        probe = [*drop, python, "-c", "import sys, r1hpc.rehearsal.cli; assert sys.version_info >= (3, 11)"]
        if subprocess.run(probe, cwd=REPOSITORY, capture_output=True).returncode == 0:
            return [*drop, python]
    pytest.skip("needs root, and a Python 3.11 and a checkout that the user nobody can read")
