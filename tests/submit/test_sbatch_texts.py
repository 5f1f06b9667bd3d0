"""Golden sbatch files: the exact texts of the R1 run and of the rehearsal. R1HPC_UPDATE_GOLDEN=1 writes them anew."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from r1hpc.config import load_config
from r1hpc.rundir import RunDir
from r1hpc.submit.parameters import HOME
from r1hpc.submit.requests import Submission
from r1hpc.submit.stages import BY_NAME

GOLDEN = Path(__file__).parent / "golden"


def _submission(config_name: str, *overrides: str, hosts: tuple[str, ...] = (), restart: str = "requeue") -> Submission:
    config = load_config(HOME / "configs" / config_name, overrides=["run.root=/runs", *overrides]).config
    directory = RunDir(Path("/runs") / config.run.name)
    return Submission(config, f"{config.run.name}-0a1b2c", directory, "20260102T030405", 1020, restart, hosts)


def _check(name: str, text: str) -> None:
    text = text.replace(sys.executable, "PYTHON").replace(str(HOME), "HOME")
    path = GOLDEN / f"{name}.sh"
    if os.environ.get("R1HPC_UPDATE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("stage", ["cast", "convert", "train"])
def test_r1(stage: str) -> None:
    _check(f"r1-{stage}", _submission("r1.yaml").job(BY_NAME[stage]).text(None if stage == "cast" else "afterok:41"))


def test_rehearsal_preflight() -> None:
    _check("rehearsal-preflight", _submission("rehearsal.yaml").job(BY_NAME["preflight"]).text())


def test_every_option_of_a_site() -> None:
    options = {
        "partition": "batch",
        "account": "llm",
        "qos": "high",
        "constraint": "h100&ib",
        "reservation": "r1",
        "exclude": "node[03,07-08]",
        "gpus": "gres",
        "gpu_type": "h100",
        "switches": "1@24:00:00",
        "nice": "100",
        "comment": "'project 7'",
        "mail_type": "FAIL",
        "mail_user": "me@example.org",
        "setup": "[module purge, module load cuda/13]",
        "container": "[--container-image=/images/r1.sqsh, '--container-mounts=/data:/data']",
        "python": "/opt/venv/bin/python",
        "extra": "{licenses: lustre, contiguous: true, wckey: rl}",
    }
    overrides = [f"slurm.{key}={value}" for key, value in options.items()]
    submission = _submission("r1.yaml", *overrides, hosts=("node05", "node01", "node02"), restart="chain")
    _check("site-train", submission.job(BY_NAME["train"]).text())


def test_sweep_picks_each_elements_run_directory() -> None:
    submission = _submission("r1.yaml")
    directories = [RunDir(Path("/runs/a")), RunDir(Path("/runs/b"))]
    job = submission.sweep_job(BY_NAME["train"], directories, Path("/runs/deepseek-r1/sweep.txt"))
    assert job.is_array
    assert [arguments[0] for arguments in job.arguments] == ["/runs/a", "/runs/b"]
    _check("r1-sweep", job.text())


def test_the_train_job_by_hand_tells_the_lead_of_its_own_signal() -> None:
    text = (HOME / "sbatch" / "train.sh").read_text(encoding="utf-8")
    (asked,) = re.findall(r"^#SBATCH --signal=USR1@(\d+)$", text, re.MULTILINE)
    (told,) = re.findall(r"^export R1HPC_SIGNAL_LEAD_S=\$\{R1HPC_SIGNAL_LEAD_S:-(\d+)\}$", text, re.MULTILINE)
    assert told == asked


class ByHand:
    """sbatch/train.sh as Slurm starts it, against a Python and a scontrol that note how they are called."""

    def __init__(self, root: Path) -> None:
        self.root, self.run = root, root / "run"
        self.run.mkdir()
        self._program("python", f'echo "$*" >> {root}/calls; [ -e {root}/broken ] && exit 1; echo {self.run}')
        self._program("scontrol", f'echo "$*" >> {root}/calls; echo "x JobState=RUNNING x"')
        self._program("sleep", "true")

    def _program(self, name: str, text: str) -> None:
        path = self.root / name
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(0o755)

    def start(self, restart: int) -> tuple[int, list[str]]:
        """The exit code, and what was called in this start."""
        (self.root / "calls").write_text("", encoding="utf-8")
        environment = {"PATH": f"{self.root}:/usr/bin:/bin", "R1HPC_HOME": str(HOME), "SLURM_JOB_ID": "7"}
        environment |= {"R1HPC_PYTHON": str(self.root / "python"), "SLURM_RESTART_COUNT": str(restart)}
        with (self.root / "log").open("a") as log:
            done = subprocess.run(
                ["bash", str(HOME / "sbatch" / "train.sh"), "x.yaml"],
                env=environment,
                stdout=log,
                stderr=log,
                timeout=60,
                check=False,
            )
        return done.returncode, (self.root / "calls").read_text(encoding="utf-8").splitlines()


def test_a_restart_by_hand_finds_done_without_a_python(tmp_path: Path) -> None:
    job = ByHand(tmp_path)
    (job.run / "DONE").touch()
    prepared = "-m r1hpc.submit x.yaml --prepare --own-job 7 --signal-lead 1800"
    assert job.start(0) == (0, [prepared])
    (tmp_path / "broken").touch()
    assert job.start(1) == (0, [])
    (tmp_path / "log-7.run").unlink()
    (tmp_path / "broken").unlink()
    assert job.start(1) == (0, [f"{prepared} --again"])


def test_a_restart_by_hand_that_cannot_be_prepared_is_held_and_a_first_start_is_not(tmp_path: Path) -> None:
    job = ByHand(tmp_path)
    (tmp_path / "broken").touch()
    exit_code, calls = job.start(0)
    assert (exit_code, len(calls)) == (64, 1)
    exit_code, calls = job.start(1)
    assert (exit_code, calls[1:]) == (64, ["show job -o 7", "requeuehold 7"])


def test_the_hooks_pass_shellcheck() -> None:
    scripts = sorted((HOME / "sbatch").glob("*.sh"))
    assert [path.name for path in scripts] == ["cast.sh", "convert.sh", "hooks.sh", "train.sh"]
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)
    try:
        done = subprocess.run(
            ["shellcheck", "-x", "-P", str(HOME), *map(str, scripts)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("shellcheck is not installed")
    assert done.returncode == 0, done.stdout
