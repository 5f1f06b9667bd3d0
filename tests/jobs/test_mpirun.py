"""A run on the hosts of a file that somebody wrote, under MPICH's mpiexec and without Slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from r1hpc import exit_codes
from r1hpc.cluster.hostfile import main as hostfile_main
from r1hpc.cluster.leftovers import processes_of
from tests.cluster.loopback import HOME, make_run

MPIEXEC = Path(sys.executable).with_name("mpiexec")
TRAIN = [sys.executable, "-m", "jobs.train"]


def _mpiexec(hostfile: Path, count: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    # As printed, but for the launcher: no ssh to a loopback address.
    command = [str(MPIEXEC), "-launcher", "fork", "-f", f"{hostfile}.hydra", "-ppn", "1", "-n", str(count)]
    return subprocess.run(
        [*command, *TRAIN, *arguments], cwd=HOME, capture_output=True, text=True, timeout=150, check=False
    )


def test_a_hostfile_of_the_recipes_form_carries_a_whole_attempt(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("127.0.0.11 slot=2\n127.0.0.10 slot=2\n127.0.0.12 slot=2\n")
    assert hostfile_main([str(hostfile), "--write"]) == 0
    run = make_run(tmp_path / "run", "hosts.num_nodes=2")
    done = _mpiexec(hostfile, 2, str(run.root), "--hostfile", str(hostfile), "--until", "bring-up")
    assert done.returncode == exit_codes.SUCCESS, done.stdout + done.stderr
    (attempt,) = run.attempts.iterdir()
    slots = json.loads((attempt / "placement.json").read_text(encoding="utf-8"))
    # The first line is the head; the third is a spare.
    assert [(slot["host"], slot["gpu"]) for slot in slots] == [
        ("127.0.0.11", 0),
        ("127.0.0.11", 1),
        ("127.0.0.10", 0),
        ("127.0.0.10", 1),
    ]
    assert processes_of(json.loads(run.run.read_text(encoding="utf-8"))["run_id"]) == []


def test_the_wrong_number_of_processes_is_answered_with_the_right_command(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("127.0.0.10 slots=2\n127.0.0.11 slots=2\n127.0.0.12 slots=2\n")
    assert hostfile_main([str(hostfile), "--write"]) == 0
    run = make_run(tmp_path / "run", "hosts.num_nodes=3")
    done = _mpiexec(hostfile, 2, str(run.root), "--hostfile", str(hostfile))
    assert done.returncode == exit_codes.PREFLIGHT_FAILED
    assert "MPICH started 2 processes, but hosts.num_nodes = 3" in done.stderr
    assert f"mpirun --hostfile {hostfile} --map-by ppr:1:node -np 3" in done.stderr
    assert f"mpiexec -f {hostfile}.hydra -ppn 1 -n 3" in done.stderr
    assert list(run.attempts.iterdir()) == []


def test_without_a_launcher_it_says_how_it_is_started(tmp_path: Path) -> None:
    hostfile = tmp_path / "hosts"
    hostfile.write_text("127.0.0.10 slots=2\n")
    run = make_run(tmp_path / "run")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "PMI_", "OMPI_"))
    }
    done = subprocess.run(
        [*TRAIN, str(run.root), "--hostfile", str(hostfile)],
        cwd=HOME,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == exit_codes.PREFLIGHT_FAILED
    assert "it takes one process a host" in done.stderr
